// Launchers of gated_upsample_add on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include <type_traits>

#include "../ops/gated_upsample_add.h"

namespace tinyops::gated_upsample_add {

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& args, cudaStream_t stream);

// `products` is scratch for [N, H, W] sums over channels, null where backward_scratch() is 0.
template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& args, acc_t<T>* products,
                          cudaStream_t stream);
template <typename T>
int64_t backward_scratch(const Problem& p, const BackwardArgs<T>& args);

// Calls f with the mode as a compile-time constant.
template <typename F>
cudaError_t for_mode(Mode mode, F&& f) {
  switch (mode) {
    case Mode::kPlain: return f(std::integral_constant<Mode, Mode::kPlain>{});
    case Mode::kGated: return f(std::integral_constant<Mode, Mode::kGated>{});
    default: return f(std::integral_constant<Mode, Mode::kSelfGated>{});
  }
}

}  // namespace tinyops::gated_upsample_add
