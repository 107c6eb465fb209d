#include "torch_cuda.h"

// after torch_cuda.h, which pins the ABI
#include "../ops/difference_map_check.h"
#include "difference_map.h"

namespace tinyops::difference_map {
namespace {

// Offsets inside a plane are 32-bit on the GPU.
void check_plane(const Problem& p) {
  check(p.plane() < (int64_t{1} << 31), kName,
        "on a GPU a plane must have fewer than 2^31 pixels, got ", p.height, "x", p.width);
}

Tensor difference_map_cuda(const Tensor& reconstruction, const Tensor& image,
                           const OptionalTensor& valid) {
  const Problem p = check_forward(reconstruction, image, valid);
  check_plane(p);
  const DeviceGuard guard(reconstruction);
  const ForwardTensors t(p, reconstruction, image, valid);
  if (p.images * p.plane() == 0) return t.out;
  for_float_dtype<__half, __nv_bfloat16>(reconstruction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(forward_cuda<T>(p, t.args<T>(), current_stream(reconstruction)), kOp);
  });
  return t.out;
}

Tensor difference_map_backward_cuda(const Tensor& grad, const Tensor& reconstruction,
                                    const Tensor& image, const OptionalTensor& valid) {
  const Problem p = check_backward(grad, reconstruction, image, valid);
  check_plane(p);
  const DeviceGuard guard(reconstruction);
  const BackwardTensors t(p, grad, reconstruction, image, valid);
  if (p.images * p.channels * p.plane() == 0) return t.d_reconstruction;
  for_float_dtype<__half, __nv_bfloat16>(reconstruction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(backward_cuda<T>(p, t.args<T>(), current_stream(reconstruction)),
               "_difference_map_backward");
  });
  return t.d_reconstruction;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("difference_map", TORCH_BOX(&difference_map_cuda));
  m.impl("_difference_map_backward", TORCH_BOX(&difference_map_backward_cuda));
}

}  // namespace tinyops::difference_map
