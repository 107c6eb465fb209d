// Launchers of avg_max_pool on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/avg_max_pool.h"

namespace tinyops::avg_max_pool {

// The cells of an image are read in parts, by blocks of threads of their own.
int64_t parts_of(const Problem& p);

// What a part leaves for each plane, joined by a second kernel: [planes, parts] each.
template <typename A>
struct Partials {
  A *sum, *max;
  int32_t* place;
};

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& args,
                         const Partials<acc_t<T>>& partials, cudaStream_t stream);
template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& args, cudaStream_t stream);

}  // namespace tinyops::avg_max_pool
