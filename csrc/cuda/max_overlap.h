// Launchers of max_overlap on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/max_overlap.h"

namespace tinyops::max_overlap {

// value [k] and index [k].
template <typename T>
cudaError_t best_cuda(const Problem<T>& problem, T* value, int64_t* index, cudaStream_t stream);

// The last target of every box whose key is at least its cut [m], and the value at least min_value
// and above 0 (kGiou: any), or -1; into assigned [k].
template <typename T>
cudaError_t last_cuda(const Problem<T>& problem, const T* cut, T min_value, int64_t* assigned,
                      cudaStream_t stream);

}  // namespace tinyops::max_overlap
