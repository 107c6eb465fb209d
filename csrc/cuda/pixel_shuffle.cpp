#include "torch_cuda.h"

#include <algorithm>

// after torch_cuda.h, which pins the ABI
#include "../ops/pixel_shuffle_check.h"
#include "pixel_shuffle.h"

namespace tinyops::pixel_shuffle {
namespace {

// Offsets inside a plane (in NHWC: inside a row) are 32-bit on the GPU.
void check_plane(const char* op, const Problem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const int64_t channels = std::max<int64_t>(1, p.outer_channels);
  const bool fits = p.channels_last ? p.upscale * p.width <= kMost / channels
                                    : p.height == 0 || p.parts() * p.width <= kMost / p.height;
  check(fits, op,
        ": on a GPU an upscaled plane (channels_last: a row) must have fewer than 2^31 elements, ",
        "got ", p.outer_channels, " channels of ", p.upscale * p.height, "x", p.upscale * p.width);
}

template <Join kJoin>
Tensor forward_cuda_glue(const Tensor& content, const Tensor& other, int64_t upscale,
                         double negative_slope, int64_t order) {
  const Problem p = check_forward(kJoin, content, other, upscale, negative_slope, order);
  check_plane(name_of(kJoin), p);
  const DeviceGuard guard(content);
  const ForwardTensors t(kJoin, p, content, other);
  if (p.images * p.outer_channels * p.plane() == 0) return t.out;
  for_float_dtype<__half, __nv_bfloat16>(content.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(forward_cuda<T>(p, t.args<T>(), current_stream(content)), name_of(kJoin));
  });
  return t.out;
}

Tensor backward_cuda_glue(const Tensor& grad, const OptionalTensor& content, int64_t channels,
                          int64_t upscale, double negative_slope, int64_t order) {
  const Problem p = check_backward(grad, content, channels, upscale, negative_slope, order);
  check_plane("pixel_shuffle", p);
  const DeviceGuard guard(grad);
  const BackwardTensors t(p, grad, content);
  if (p.numel() == 0) return t.d_content;
  for_float_dtype<__half, __nv_bfloat16>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(backward_cuda<T>(p, t.args<T>(), current_stream(grad)), "_pixel_shuffle_backward");
  });
  return t.d_content;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("pixel_shuffle_concat", TORCH_BOX(&forward_cuda_glue<Join::kConcat>));
  m.impl("pixel_shuffle_add", TORCH_BOX(&forward_cuda_glue<Join::kAdd>));
  m.impl("_pixel_shuffle_backward", TORCH_BOX(&backward_cuda_glue));
}

}  // namespace tinyops::pixel_shuffle
