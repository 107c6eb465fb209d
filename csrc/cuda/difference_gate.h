// Launchers of difference_gate on raw device pointers. They return the first launch error.
// The map (D) may have another type than the features (T).
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/difference_gate.h"
#include "../ops/nearest.h"

namespace tinyops::difference_gate {

template <typename T, typename D>
struct ForwardArgs {
  const T *features, *channel_weight;
  const D *difference, *threshold;
  T* out;
};

template <typename T, typename D>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T, D>& args, cudaStream_t stream);

// Gradients that are not wanted are null, and so are then parts (for d_channel_weight), sums and
// totals (for d_difference and d_threshold).
template <typename T, typename D>
struct BackwardArgs {
  const T *grad, *features, *channel_weight;
  const D *difference, *threshold;
  T *d_features, *d_channel_weight;
  D *d_difference, *d_threshold;
  acc_t<T>* parts;  // [N, blocks, C]: sums over the cells of a block
  acc_t<T>* sums;   // [N, cells]: sum_c grad * features * channel_weight
  double* totals;   // [N, map_blocks]: shares of -d_threshold
};

// How many blocks an image is cut into: of the pass over the features, and of that over the map.
template <typename T, typename D>
int64_t blocks_of(const Problem& p, const BackwardArgs<T, D>& args);
int64_t map_blocks_of(const Problem& p);

template <typename T, typename D>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T, D>& args, cudaStream_t stream);

}  // namespace tinyops::difference_gate
