// The best target of every box on a GPU. A thread owns a box; its block goes through the targets,
// 256 at a time in shared memory, and leaves out those tiles that have none of its images. 16 bytes
// are read and 12 written per box; it is bound by arithmetic, about 15 instructions per pair.
#include "launch.h"
#include "max_overlap.h"

namespace tinyops::max_overlap {
namespace {

using cuda::kThreads;

// The smallest and largest image of the boxes of a block.
__device__ void image_range(int64_t image, bool active, long long (&range)[2]) {
  __syncthreads();  // of the turn before nobody reads any more
  if (threadIdx.x == 0) {
    range[0] = 0x7fffffffffffffffLL;
    range[1] = -range[0] - 1;
  }
  __syncthreads();
  if (active) {
    atomicMin(&range[0], static_cast<long long>(image));
    atomicMax(&range[1], static_cast<long long>(image));
  }
  __syncthreads();
}

// Calls start(box index), visit(key, target index, target in the tile), in the order of targets,
// for those that count, and finish(box index); load(target index, target in the tile) once per
// target.
template <Mode kMode, typename T, typename L, typename S, typename V, typename F>
__device__ void for_pairs(const Problem<T>& p, const L& load, const S& start, const V& visit,
                          const F& finish) {
  __shared__ Side<T> sides[kThreads];
  __shared__ int64_t images[kThreads];
  __shared__ int counts[kThreads];
  __shared__ long long range[2];
  const int thread = static_cast<int>(threadIdx.x);
  const int boxes = static_cast<int>(p.k), targets = static_cast<int>(p.m);
  const bool by_image = p.image_ids != nullptr;
  for (int64_t at = int64_t{blockIdx.x} * kThreads; at < boxes;
       at += int64_t{gridDim.x} * kThreads) {
    const bool active = at + thread < boxes;
    const int i = active ? static_cast<int>(at) + thread : 0;
    const Side<T> box = side_of<kMode, false>(p.boxes[i]);
    const int64_t image = by_image ? p.image_ids[i] : 0;
    if (by_image) image_range(image, active, range);
    start(i);
    for (int tile = 0; tile < targets; tile += kThreads) {
      const int j = tile + thread, size = targets - tile < kThreads ? targets - tile : kThreads;
      bool here = j < targets && (!p.target_mask || p.target_mask[j]);
      const int64_t other = here && by_image ? p.target_image_ids[j] : 0;
      if (by_image) here = here && other >= range[0] && other <= range[1];
      // Also the barrier after which the tile before may be overwritten.
      if (!__syncthreads_or(here)) continue;
      counts[thread] = here;
      images[thread] = other;
      if (here) {
        sides[thread] = side_of<kMode, true>(p.targets[j]);
        load(j, thread);
      }
      __syncthreads();
      for (int t = 0; active && t < size; ++t) {
        if (!counts[t] || (by_image && images[t] != image)) continue;
        visit(key<T, kMode>(box, sides[t]), tile + t, t);
      }
    }
    if (active) finish(i);
  }
}

template <Mode kMode, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    best_kernel(Problem<T> p, T* __restrict__ value, int64_t* __restrict__ index) {
  T highest = 0;
  int which = -1;
  for_pairs<kMode>(
      p, [](int, int) {}, [&](int) { which = -1; },
      [&](T key, int target, int) {
        if (which >= 0 && !(key > highest)) return;  // of equal ones the first
        highest = key;
        which = target;
      },
      [&](int i) {
        value[i] = which < 0 ? no_value<T>(kMode) : value_of_key(kMode, highest);
        index[i] = which;
      });
}

template <Mode kMode, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    last_kernel(Problem<T> p, const T* __restrict__ cut, T min_value,
                int64_t* __restrict__ assigned) {
  __shared__ T cuts[kThreads];
  int which = -1;
  for_pairs<kMode>(
      p, [&](int target, int at) { cuts[at] = cut[target]; }, [&](int) { which = -1; },
      [&](T key, int target, int at) {
        if (!(key >= cuts[at])) return;  // nor where the cut is NaN
        const T v = value_of_key(kMode, key);
        if (v >= min_value && (kMode == Mode::kGiou || v > T(0))) which = target;
      },
      [&](int i) { assigned[i] = which; });
}

dim3 blocks_of(int64_t boxes) {
  return cuda::grid_of(ceil_div(boxes, kThreads), 1, 1);
}

}  // namespace

template <typename T>
cudaError_t best_cuda(const Problem<T>& p, T* value, int64_t* index, cudaStream_t stream) {
  if (p.k == 0) return cudaSuccess;
  return for_mode(p.mode, [&](auto mode) {
    return cuda::launch(best_kernel<decltype(mode)::value, T>, blocks_of(p.k), kThreads, stream, p,
                        value, index);
  });
}

template <typename T>
cudaError_t last_cuda(const Problem<T>& p, const T* cut, T min_value, int64_t* assigned,
                      cudaStream_t stream) {
  if (p.k == 0) return cudaSuccess;
  return for_mode(p.mode, [&](auto mode) {
    return cuda::launch(last_kernel<decltype(mode)::value, T>, blocks_of(p.k), kThreads, stream, p,
                        cut, min_value, assigned);
  });
}

#define TINYOPS_INSTANTIATE(T)                                                      \
  template cudaError_t best_cuda<T>(const Problem<T>&, T*, int64_t*, cudaStream_t); \
  template cudaError_t last_cuda<T>(const Problem<T>&, const T*, T, int64_t*, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::max_overlap
