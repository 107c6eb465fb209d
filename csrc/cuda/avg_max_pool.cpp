#include "torch_cuda.h"
// after torch_cuda.h, which pins the ABI
#include "../ops/avg_max_pool_check.h"
#include "avg_max_pool.h"

namespace tinyops::avg_max_pool {
namespace {

// Offsets inside a plane are 32-bit on the GPU.
void check_plane(const Problem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - (int64_t{1} << 24);  // with room for a part
  check(p.plane() <= kMost, kName, "on a GPU a plane must have fewer than 2^31 cells, got ",
        p.height, "x", p.width);
}

std::tuple<Tensor, Tensor, Tensor> avg_max_pool_cuda(const Tensor& features,
                                                     const OptionalTensor& valid) {
  const Problem p = check_forward(features, valid);
  check_plane(p);
  const DeviceGuard guard(features);
  const ForwardTensors t(p, features, valid);
  if (p.planes() == 0) return t.outputs();
  for_float_dtype<__half, __nv_bfloat16>(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const int64_t size = p.planes() * parts_of(p);
    const Tensor sums = empty_on(
        features, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float, {2, size});
    const Tensor places = empty_on(features, ScalarType::Int, {size});
    A* const memory = mutable_data<A>(sums);
    const Partials<A> partials{memory, memory + size, mutable_data<int32_t>(places)};
    check_cuda(forward_cuda<T>(p, t.args<T>(), partials, current_stream(features)), "avg_max_pool");
  });
  return t.outputs();
}

Tensor avg_max_pool_backward_cuda(const Tensor& d_mean, const Tensor& d_max, const Tensor& index,
                                  const OptionalTensor& valid, int64_t height, int64_t width,
                                  bool channels_last) {
  const Problem p = check_backward(d_mean, d_max, index, valid, height, width, channels_last);
  check_plane(p);
  const DeviceGuard guard(d_mean);
  const BackwardTensors t(p, d_mean, d_max, index, valid);
  if (p.planes() == 0) return t.d_features;
  for_float_dtype<__half, __nv_bfloat16>(d_mean.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(backward_cuda<T>(p, t.args<T>(), current_stream(d_mean)), "_avg_max_pool_backward");
  });
  return t.d_features;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("avg_max_pool", TORCH_BOX(&avg_max_pool_cuda));
  m.impl("_avg_max_pool_backward", TORCH_BOX(&avg_max_pool_backward_cuda));
}

}  // namespace tinyops::avg_max_pool
