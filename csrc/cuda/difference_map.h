// Launchers of difference_map on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/difference_map.h"
#include "../ops/nearest.h"

namespace tinyops::difference_map {

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& args, cudaStream_t stream);

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& args, cudaStream_t stream);

}  // namespace tinyops::difference_map
