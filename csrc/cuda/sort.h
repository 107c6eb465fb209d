// Stable sorts on the GPU: the one place where another library's kernels (CUB's) are used.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace tinyops {

// Sorts (key, value) pairs by the lowest `bits` bits of their keys, from low to high; equal keys
// keep their order. Without `scratch` it only says how many bytes of scratch it wants.
template <typename Key>  // uint32_t, uint64_t
cudaError_t sort_pairs(void* scratch, size_t& scratch_bytes, const Key* keys, Key* sorted_keys,
                       const int32_t* values, int32_t* sorted_values, int n, int bits,
                       cudaStream_t stream);

// order: the indices of the scores from highest to lowest, equal ones (-0.0 and 0.0, too) by lower
// index. NaN, which the operators refuse, has some place.
template <typename T>  // float, double
cudaError_t rank_scores(void* scratch, size_t& scratch_bytes, const T* scores, int n,
                        int32_t* order, cudaStream_t stream);

}  // namespace tinyops
