#include "balanced_l1.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../ops/balanced_l1_check.h"
#include "maps.h"

namespace tinyops::balanced_l1 {
namespace {

constexpr int64_t kPartElements = 65536;

Parts cut(const Problem& p) {
  const int64_t wanted = p.channels_last ? kPartElements / std::max<int64_t>(1, p.channels)
                                         : kPartElements;  // a whole number of vectors
  const int64_t cells = std::max<int64_t>(1, wanted);
  return {cells, ceil_div(p.plane(), cells)};
}
int64_t units_of(const Problem& p, const Parts& parts) {
  return p.numel() == 0 ? 0 : p.images * (p.channels_last ? 1 : p.channels) * parts.per_plane;
}

template <typename A>
Isa isa_of(const Problem& p) {
  return cpu_isa_for_line(p.channels_last ? p.channels : p.plane(), sizeof(A));
}

// What each cell counts for, [N, H*W]. Boxes of images that do not exist paint nothing.
std::vector<uint8_t> paint(const Problem& p, const Inputs& in) {
  std::vector<uint8_t> mask(static_cast<size_t>(p.cells()), in.valid ? kOutside : kInside);
  const auto* valid = data<int64_t>(in.valid);
  const auto* ids = data<int64_t>(in.image_ids);
  const auto fill = [&](int64_t image, const Cells& c, uint8_t value) {
    if (c.left >= c.right) return;
    for (int64_t y = c.top; y < c.bottom; ++y)
      std::memset(mask.data() + image * p.plane() + y * p.width + c.left, value,
                  static_cast<size_t>(c.right - c.left));
  };
  for (int64_t n = 0; in.valid && n < p.images; ++n) {
    const Extent e = extent_of(valid, n, p.height, p.width);
    fill(n, {0, 0, e.columns, e.rows}, kInside);
  }
  for_compute_dtype(in.boxes.scalar_type(), [&](auto zero) {
    const auto* boxes = data<Box<decltype(zero)>>(in.boxes);
    for (int64_t k = 0; k < p.boxes; ++k) {
      if (ids[k] < 0 || ids[k] >= p.images) continue;
      const Extent e = extent_of(valid, ids[k], p.height, p.width);
      fill(ids[k], cells_of(boxes[k], p.scale, e), kPositive);
    }
  });
  return mask;
}

std::tuple<Tensor, Tensor, Tensor> balanced_l1_sums_cpu(const Tensor& prediction,
                                                        const Tensor& target, const Tensor& boxes,
                                                        const Tensor& image_ids,
                                                        const OptionalTensor& valid, double scale) {
  const Problem p = check_forward(prediction, target, boxes, image_ids, valid, scale);
  const Inputs in(p, prediction, target, boxes, image_ids, valid);
  const Sums out(prediction);
  const std::vector<uint8_t> mask = paint(p, in);
  const Parts parts = cut(p);
  const int64_t units = units_of(p, parts);
  std::vector<Sum2> of_units(static_cast<size_t>(units));
  for_float_dtype<half_t, bfloat16_t>(prediction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const ForwardArgs<T> args{data<T>(in.prediction), data<T>(in.target), mask.data()};
    if (units > 0)
      torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / (p.numel() / units)),
                                  [&](int64_t begin, int64_t end) {
                                    for_isa(isa_of<A>(p), [&](auto chosen) {
                                      sums<chosen.value, T>(p, parts, args, of_units.data(), begin,
                                                            end);
                                    });
                                  });
    Sum2 all{0, 0};
    for (const Sum2& s : of_units) all = {all.total + s.total, all.positive + s.positive};
    *mutable_data<A>(out.total) = static_cast<A>(all.total);
    *mutable_data<A>(out.positive) = static_cast<A>(all.positive);
  });
  *mutable_data<int64_t>(out.cells) = std::count(mask.begin(), mask.end(), uint8_t{kPositive});
  return out.outputs();
}

std::tuple<Tensor, Tensor> balanced_l1_sums_backward_cpu(
    const Tensor& d_total, const Tensor& d_positive, const Tensor& prediction, const Tensor& target,
    const Tensor& boxes, const Tensor& image_ids, const OptionalTensor& valid, double scale,
    bool need_prediction, bool need_target) {
  const Problem p = check_forward(prediction, target, boxes, image_ids, valid, scale);
  check_sum_gradient("d_total", d_total, prediction);
  check_sum_gradient("d_positive", d_positive, prediction);
  const Inputs in(p, prediction, target, boxes, image_ids, valid);
  const Gradients out(p, in.prediction, need_prediction, need_target);
  const Parts parts = cut(p);
  const int64_t units = units_of(p, parts);
  if (units == 0 || !(need_prediction || need_target)) return out.outputs();
  const std::vector<uint8_t> mask = paint(p, in);
  for_float_dtype<half_t, bfloat16_t>(prediction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const BackwardArgs<T> args{data<T>(in.prediction),
                               data<T>(in.target),
                               mask.data(),
                               data<A>(d_total),
                               data<A>(d_positive),
                               need_prediction ? mutable_data<T>(out.prediction) : nullptr,
                               need_target ? mutable_data<T>(out.target) : nullptr};
    const bool stream = p.numel() * int64_t{sizeof(T)} >= kStreamBytes;
    torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / (p.numel() / units)),
                                [&](int64_t begin, int64_t end) {
                                  for_isa(isa_of<A>(p), [&](auto chosen) {
                                    backward<chosen.value, T>(p, parts, args, stream, begin, end);
                                  });
                                });
  });
  return out.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("balanced_l1_sums", TORCH_BOX(&balanced_l1_sums_cpu));
  m.impl("_balanced_l1_sums_backward", TORCH_BOX(&balanced_l1_sums_backward_cpu));
}

}  // namespace tinyops::balanced_l1
