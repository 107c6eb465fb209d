// Launchers of balanced_l1 on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/balanced_l1.h"

namespace tinyops::balanced_l1 {

// Writes all of mask [N, H*W]. T is that of the boxes; valid may be null.
template <typename T>
cudaError_t paint_cuda(const Problem& p, const Box<T>* boxes, const int64_t* image_ids,
                       const int64_t* valid, uint8_t* mask, cudaStream_t stream);

// What each block of threads leaves, [blocks] each, joined by a last block.
struct Partials {
  double *total, *positive;
  int32_t* cells;
};
template <typename A>
struct Results {
  A *total, *positive;
  int64_t* cells;
};

template <typename T>
int64_t blocks_of(const Problem& p, const ForwardArgs<T>& args);
template <typename T>
cudaError_t sums_cuda(const Problem& p, const ForwardArgs<T>& args, const Partials& partials,
                      const Results<acc_t<T>>& results, cudaStream_t stream);
template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& args, cudaStream_t stream);

}  // namespace tinyops::balanced_l1
