#include "torch_cuda.h"

#include <algorithm>
#include <array>

// after torch_cuda.h, which pins the ABI
#include "../ops/gated_upsample_add_check.h"
#include "gated_upsample_add.h"

namespace tinyops::gated_upsample_add {
namespace {

// Offsets inside a plane (in NHWC: inside a row) are 32-bit on the GPU.
void check_plane(const Problem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const bool fits = p.channels_last
                        ? std::max(p.x.out, p.x.in) <= kMost / std::max<int64_t>(1, p.channels)
                        : std::max(p.low_plane(), p.high_plane()) <= kMost;
  check(fits, kName, "on a GPU a plane (channels_last: a row) must have fewer than 2^31 elements, ",
        "got ", p.channels, " channels of ", p.y.out, "x", p.x.out, " and ", p.y.in, "x", p.x.in);
}

void run_forward(const Problem& p, const ForwardTensors& t) {
  if (p.low_numel() == 0) return;
  for_float_dtype<__half, __nv_bfloat16>(t.low.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(forward_cuda<T>(p, t.args<T>(), current_stream(t.low)), "gated_upsample_add");
  });
}

Tensor gated_upsample_add_cuda(const Tensor& low, const Tensor& high,
                               const OptionalTensor& gate_low, const OptionalTensor& gate_high,
                               bool self_gate) {
  const Problem p = check_forward(low, high, gate_low, gate_high, self_gate);
  check_plane(p);
  const DeviceGuard guard(low);
  const ForwardTensors t(p, low, high, gate_low, gate_high, false);
  run_forward(p, t);
  return t.out;
}

void gated_upsample_add_in_place_cuda(const Tensor& low, const Tensor& high,
                                      const OptionalTensor& gate_low,
                                      const OptionalTensor& gate_high, bool self_gate) {
  const Problem p = check_forward(low, high, gate_low, gate_high, self_gate);
  check_plane(p);
  check_in_place(low, high, gate_low, gate_high);
  const DeviceGuard guard(low);
  run_forward(p, {p, low, high, gate_low, gate_high, true});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_upsample_add_backward_cuda(
    const Tensor& grad, const OptionalTensor& low, const OptionalTensor& high,
    const OptionalTensor& gate_low, const OptionalTensor& gate_high, int64_t high_height,
    int64_t high_width, bool self_gate) {
  const Problem p =
      check_backward(grad, low, high, gate_low, gate_high, high_height, high_width, self_gate);
  check_plane(p);
  const DeviceGuard guard(grad);
  const BackwardTensors t(p, grad, low, high, gate_low, gate_high);
  if (p.images * p.high_plane() == 0) return t.outputs();
  const cudaStream_t stream = current_stream(grad);
  for_float_dtype<__half, __nv_bfloat16>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardArgs<T> args = t.args<T>();
    const Tensor products =
        empty_on(grad, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float,
                 {backward_scratch(p, args)});
    check_cuda(backward_cuda<T>(p, args, mutable_data<acc_t<T>>(products), stream),
               "_gated_upsample_add_backward");
  });
  return t.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("gated_upsample_add", TORCH_BOX(&gated_upsample_add_cuda));
  m.impl("gated_upsample_add_", TORCH_BOX(&gated_upsample_add_in_place_cuda));
  m.impl("_gated_upsample_add_backward", TORCH_BOX(&gated_upsample_add_backward_cuda));
}

}  // namespace tinyops::gated_upsample_add
