// Checks of the values of boxes and scores on the GPU: one reduction per tensor, and one host
// synchronisation for all of them.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/boxes.h"

namespace tinyops {

// Both write to *result the lowest index of a bad element, if it is lower than what is there.
template <typename T>
cudaError_t first_bad_box_cuda(const Box<T>* boxes, int64_t n, unsigned long long* result,
                               cudaStream_t stream);
template <typename T>
cudaError_t first_nan_cuda(const T* values, int64_t n, unsigned long long* result,
                           cudaStream_t stream);

}  // namespace tinyops
