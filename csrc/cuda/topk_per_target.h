// Launcher of topk_per_target on raw device pointers. It returns the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/topk_per_target.h"

namespace tinyops::topk_per_target {

// A list of the best boxes of every target while they are found, in two copies that take turns:
// 2 * length elements per target, length being the smaller of k and the number of boxes.
template <typename T>
struct Scratch {
  T* keys;
  int32_t* boxes;
};

// value [m, k], index [m, k], and cut [m] or null: the key of the last box of each target, NaN if
// it has none.
template <typename T>
cudaError_t best_boxes_cuda(const max_overlap::Problem<T>& problem, int64_t k, Scratch<T> scratch,
                            T* value, int64_t* index, T* cut, cudaStream_t stream);

}  // namespace tinyops::topk_per_target
