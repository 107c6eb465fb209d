// Launchers of the pixel shuffles on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include <type_traits>

#include "../ops/pixel_shuffle.h"

namespace tinyops::pixel_shuffle {

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& args, cudaStream_t stream);

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& args, cudaStream_t stream);

// Calls f with the factor as a compile-time constant: 2, 3 or 4.
template <typename F>
cudaError_t for_upscale(int upscale, F&& f) {
  switch (upscale) {
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    default: return f(std::integral_constant<int, 4>{});
  }
}
template <typename F>
cudaError_t for_bool(bool value, F&& f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace tinyops::pixel_shuffle
