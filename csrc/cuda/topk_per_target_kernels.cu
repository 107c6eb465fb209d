// The best boxes of every target on a GPU. A block owns a target and goes through the boxes, one
// per thread and turn. Those better than the worst of its list wait in shared memory; when many do,
// they are merged into the list: every element counts those before it, which is its place. 16 bytes
// are read per pair of box and target, from the L2 cache for all targets but the first.
#include "launch.h"
#include "topk_per_target.h"

namespace tinyops::topk_per_target {
namespace {

using namespace max_overlap;
using cuda::kThreads;

constexpr int kWaiting = 4 * kThreads;

template <typename T>
struct Waiting {
  T keys[kWaiting];
  int32_t boxes[kWaiting];
  int count;
};

// How many of the waiting elements come before (key, box).
template <typename T>
__device__ int count_before(const Waiting<T>& waiting, int n, T key, int32_t box) {
  int before = 0;
  for (int e = 0; e < n; ++e) before += is_before(waiting.keys[e], waiting.boxes[e], key, box);
  return before;
}

// Writes the best `most` elements of `from`, which is sorted, and of the n that wait. The barriers
// at its ends are the caller's.
template <typename T>
__device__ void merge(const Best<T>& from, const Waiting<T>& waiting, int n, const Best<T>& to) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < n; e += kThreads) {
    const T key = waiting.keys[e];
    const int32_t box = waiting.boxes[e];
    int low = 0, high = from.count;  // how many of the list come before: a binary search
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (is_before(from.keys[middle], from.boxes[middle], key, box))
        low = middle + 1;
      else
        high = middle;
    }
    const int at = low + count_before(waiting, n, key, box);
    if (at < to.most) {
      to.keys[at] = key;
      to.boxes[at] = box;
    }
  }
  for (int e = thread; e < from.count; e += kThreads) {
    const int at = e + count_before(waiting, n, from.keys[e], from.boxes[e]);
    if (at < to.most) {
      to.keys[at] = from.keys[e];
      to.boxes[at] = from.boxes[e];
    }
  }
}

template <Mode kMode, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    best_boxes_kernel(Problem<T> p, int k, int length, Scratch<T> scratch, T* __restrict__ value,
                      int64_t* __restrict__ index, T* __restrict__ cut) {
  __shared__ Waiting<T> waiting;
  const int thread = static_cast<int>(threadIdx.x);
  const int boxes = static_cast<int>(p.k);
  for (int64_t t = blockIdx.x; t < p.m; t += gridDim.x) {
    Best<T> list{scratch.keys + 2 * t * length, scratch.boxes + 2 * t * length, 0, length};
    Best<T> other{list.keys + length, list.boxes + length, 0, length};
    const auto merge_waiting = [&](int n) {
      merge(list, waiting, n, other);
      const int count = list.count + n < length ? list.count + n : length;
      const Best<T> merged{other.keys, other.boxes, count, length};
      other = list;
      list = merged;
      __syncthreads();
      if (thread == 0) waiting.count = 0;
      __syncthreads();
    };
    if (thread == 0) waiting.count = 0;
    __syncthreads();
    if (!p.target_mask || p.target_mask[t]) {
      const Side<T> target = side_of<kMode, true>(p.targets[t]);
      const int64_t image = p.image_ids ? p.target_image_ids[t] : 0;
      int n = 0;  // how many wait; the same in every thread
      for (int begin = 0; begin < boxes; begin += kThreads) {
        const int i = begin + thread;
        bool wanted = thread < boxes - begin && (!p.image_ids || p.image_ids[i] == image);
        if (wanted) {
          const T score = key<T, kMode>(side_of<kMode, false>(p.boxes[i]), target);
          wanted = list.wants(score, i);
          if (wanted) {
            const int at = atomicAdd(&waiting.count, 1);  // in any order: the merge sorts
            waiting.keys[at] = score;
            waiting.boxes[at] = i;
          }
        }
        n += __syncthreads_count(wanted);
        if (n > kWaiting - kThreads) {
          merge_waiting(n);
          n = 0;
        }
        if (begin > boxes - kThreads) break;  // begin + kThreads could overflow
      }
      if (n > 0) merge_waiting(n);
    }
    for (int r = thread; r < k; r += kThreads) {
      const bool there = r < list.count;
      value[t * k + r] = there ? value_of_key(kMode, list.keys[r]) : no_value<T>(kMode);
      index[t * k + r] = there ? list.boxes[r] : -1;
    }
    if (cut && thread == 0)
      cut[t] = list.count ? list.keys[list.count - 1] : static_cast<T>(nan(""));
  }
}

}  // namespace

template <typename T>
cudaError_t best_boxes_cuda(const Problem<T>& p, int64_t k, Scratch<T> scratch, T* value,
                            int64_t* index, T* cut, cudaStream_t stream) {
  if (p.m == 0) return cudaSuccess;
  const int length = static_cast<int>(std::min(k, p.k));
  return for_mode(p.mode, [&](auto mode) {
    return cuda::launch(best_boxes_kernel<decltype(mode)::value, T>, cuda::grid_of(p.m, 1, 1),
                        kThreads, stream, p, static_cast<int>(k), length, scratch, value, index,
                        cut);
  });
}

#define TINYOPS_INSTANTIATE(T)                                                                  \
  template cudaError_t best_boxes_cuda<T>(const Problem<T>&, int64_t, Scratch<T>, T*, int64_t*, \
                                          T*, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::topk_per_target
