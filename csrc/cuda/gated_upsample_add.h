// Launchers of gated_upsample_add on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

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

}  // namespace tinyops::gated_upsample_add
