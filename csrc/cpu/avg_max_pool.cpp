#include "avg_max_pool.h"

#include <algorithm>
#include <memory>

#include "../ops/avg_max_pool_check.h"
#include "maps.h"

namespace tinyops::avg_max_pool {
namespace {

// Elements and cells of a part in NHWC: enough to pay for a share of every channel's sum, few
// enough for many threads.
constexpr int64_t kPartElements = 65536, kMostPartCells = 512;

Parts cut(const Problem& p) {
  const int64_t cells = std::clamp<int64_t>(kPartElements / std::max<int64_t>(1, p.channels),
                                            kGroupCells, kMostPartCells);
  return {cells, ceil_div(p.plane(), cells)};
}

template <typename A>
Isa isa_of(const Problem& p) {
  return cpu_isa_for_line(p.channels_last ? p.channels : p.plane(), sizeof(A));
}

int64_t grain_of(int64_t unit_work) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, unit_work));
}

template <typename T>
void run_forward(const Problem& p, const ForwardArgs<T>& args) {
  using A = acc_t<T>;
  const Isa isa = isa_of<A>(p);
  if (!p.channels_last) {
    torch::stable::parallel_for(
        0, p.planes(), grain_of(p.plane()), [&](int64_t begin, int64_t end) {
          for_isa(isa, [&](auto chosen) { pool_planes<chosen.value, T>(p, args, begin, end); });
        });
    return;
  }
  const Parts parts = cut(p);
  const int64_t units = p.images * parts.per_image;
  const auto size = static_cast<size_t>(units * p.channels);
  const std::unique_ptr<A[]> sums(new A[2 * size]);
  const std::unique_ptr<int32_t[]> first(new int32_t[size]);
  const Partials<A> partials{sums.get(), sums.get() + size, first.get()};
  torch::stable::parallel_for(
      0, units, grain_of(parts.cells * p.channels), [&](int64_t begin, int64_t end) {
        const std::unique_ptr<A[]> scratch(new A[2 * static_cast<size_t>(p.channels)]);
        for_isa(isa, [&](auto chosen) {
          pool_parts<chosen.value, T>(p, parts, args, partials, begin, end, scratch.get());
        });
      });
  torch::stable::parallel_for(0, p.planes(), grain_of(64 * kGroupCells),
                              [&](int64_t begin, int64_t end) {
                                for_isa(isa, [&](auto chosen) {
                                  join_parts<chosen.value, T>(p, parts, args, partials, begin, end);
                                });
                              });
}

std::tuple<Tensor, Tensor, Tensor> avg_max_pool_cpu(const Tensor& features,
                                                    const OptionalTensor& valid) {
  const Problem p = check_forward(features, valid);
  const ForwardTensors t(p, features, valid);
  if (p.planes() == 0) return t.outputs();
  for_float_dtype<half_t, bfloat16_t>(features.scalar_type(),
                                      [&](auto zero) { run_forward(p, t.args<decltype(zero)>()); });
  return t.outputs();
}

Tensor avg_max_pool_backward_cpu(const Tensor& d_mean, const Tensor& d_max, const Tensor& index,
                                 const OptionalTensor& valid, int64_t height, int64_t width,
                                 bool channels_last) {
  const Problem p = check_backward(d_mean, d_max, index, valid, height, width, channels_last);
  const BackwardTensors t(p, d_mean, d_max, index, valid);
  if (p.planes() == 0) return t.d_features;
  const Parts parts = cut(p);
  const int64_t units = p.channels_last ? p.images * parts.per_image : p.planes();
  for_float_dtype<half_t, bfloat16_t>(d_mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardArgs<T> args = t.args<T>();
    const bool stream = p.numel() * int64_t{sizeof(T)} >= kStreamBytes;
    const auto line_size = static_cast<size_t>(p.channels_last ? 2 * p.channels : 0);
    torch::stable::parallel_for(
        0, units, grain_of(p.numel() / units), [&](int64_t begin, int64_t end) {
          const std::unique_ptr<T[]> line(new T[line_size]);
          for_isa(cpu_isa(), [&](auto chosen) {
            backward<chosen.value, T>(p, parts, args, stream, begin, end, line.get());
          });
        });
  });
  return t.d_features;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("avg_max_pool", TORCH_BOX(&avg_max_pool_cpu));
  m.impl("_avg_max_pool_backward", TORCH_BOX(&avg_max_pool_backward_cpu));
}

}  // namespace tinyops::avg_max_pool
