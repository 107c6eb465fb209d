#include "gated_upsample_add.h"

#include <algorithm>

#include "../ops/gated_upsample_add_check.h"
#include "maps.h"
#include "parallel.h"

namespace tinyops::gated_upsample_add {
namespace {

// Pixels of a block in NCHW: its gates and sums stay in the L2 cache while channels pass by.
// Smaller blocks would fit into L1, but memory is fastest when planes are walked from end to end.
constexpr int64_t kBlockPixels = 65536;

// Cuts each image into blocks of source rows, at least `blocks` of them if it has as many rows.
Blocks cut(const Problem& p, int64_t blocks) {
  if (p.channels_last) return {1, p.y.in};
  const int64_t row_pixels = std::max<int64_t>(1, p.low_plane() / std::max(1, p.y.in));
  const int64_t rows = std::max<int64_t>(
      1, std::min(kBlockPixels / row_pixels, p.y.in / std::max<int64_t>(1, blocks)));
  return {rows, ceil_div(p.y.in, rows)};
}

template <typename A>
Isa isa_of(const Problem& p) {
  return cpu_isa_for_line(p.channels_last ? p.channels : p.x.in, sizeof(A));
}

void run_forward(const Problem& p, const ForwardTensors& t, bool in_place) {
  if (p.low_numel() == 0) return;
  const Blocks blocks = cut(p, 1);
  const int64_t units = p.images * (p.channels_last ? p.y.out : blocks.per_image * p.channels);
  for_float_dtype<half_t, bfloat16_t>(t.low.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const ForwardArgs<T> args = t.args<T>();
    const Isa isa = isa_of<acc_t<T>>(p);
    // In place, the line to be written has just been read into the cache.
    const bool stream = !in_place && p.low_numel() * int64_t{sizeof(T)} >= kStreamBytes;
    parallel_units<acc_t<T>>(units, p.low_numel() / units, scratch_size<acc_t<T>>(p, blocks, false),
                             [&](int64_t begin, int64_t end, acc_t<T>* scratch) {
                               for_isa(isa, [&](auto chosen) {
                                 forward<chosen.value, T>(p, blocks, args, stream, begin, end,
                                                          scratch);
                               });
                             });
  });
}

Tensor gated_upsample_add_cpu(const Tensor& low, const Tensor& high, const OptionalTensor& gate_low,
                              const OptionalTensor& gate_high, bool self_gate) {
  const Problem p = check_forward(low, high, gate_low, gate_high, self_gate);
  const ForwardTensors t(p, low, high, gate_low, gate_high, false);
  run_forward(p, t, false);
  return t.out;
}

void gated_upsample_add_in_place_cpu(const Tensor& low, const Tensor& high,
                                     const OptionalTensor& gate_low,
                                     const OptionalTensor& gate_high, bool self_gate) {
  const Problem p = check_forward(low, high, gate_low, gate_high, self_gate);
  check_in_place(low, high, gate_low, gate_high);
  run_forward(p, {p, low, high, gate_low, gate_high, true}, true);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_upsample_add_backward_cpu(
    const Tensor& grad, const OptionalTensor& low, const OptionalTensor& high,
    const OptionalTensor& gate_low, const OptionalTensor& gate_high, int64_t high_height,
    int64_t high_width, bool self_gate) {
  const Problem p =
      check_backward(grad, low, high, gate_low, gate_high, high_height, high_width, self_gate);
  const BackwardTensors t(p, grad, low, high, gate_low, gate_high);
  const int64_t threads = torch::stable::get_num_threads();
  const Blocks blocks =
      cut(p, threads == 1 ? 1 : ceil_div(4 * threads, std::max<int64_t>(1, p.images)));
  const int64_t units = p.images * blocks.per_image;
  if (units == 0 || (p.channels == 0 && p.mode == Mode::kPlain)) return t.outputs();
  for_float_dtype<half_t, bfloat16_t>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardArgs<T> args = t.args<T>();
    const Isa isa = isa_of<acc_t<T>>(p);
    const bool stream = p.low_numel() * int64_t{sizeof(T)} >= kStreamBytes;
    parallel_units<acc_t<T>>(units, p.low_numel() / units, scratch_size<acc_t<T>>(p, blocks, true),
                             [&](int64_t begin, int64_t end, acc_t<T>* scratch) {
                               for_isa(isa, [&](auto chosen) {
                                 backward<chosen.value, T>(p, blocks, args, stream, begin, end,
                                                           scratch);
                               });
                             });
  });
  return t.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("gated_upsample_add", TORCH_BOX(&gated_upsample_add_cpu));
  m.impl("gated_upsample_add_", TORCH_BOX(&gated_upsample_add_in_place_cpu));
  m.impl("_gated_upsample_add_backward", TORCH_BOX(&gated_upsample_add_backward_cpu));
}

}  // namespace tinyops::gated_upsample_add
