// Stable radix sorts of scores and of small keys. CUB's onesweep reads and writes every pair once
// per 8 bits of the key.
#include "sort.h"

#ifndef TINYOPS_CUDASIM
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#include <numeric>
#include <vector>
#endif

#include "arena.h"
#include "launch.h"

namespace tinyops {
namespace {

using cuda::kThreads;

template <typename T>
struct Bits;
template <>
struct Bits<float> {
  using type = uint32_t;
};
template <>
struct Bits<double> {
  using type = uint64_t;
};

// Unsigned keys that rise where the scores fall.
template <typename T>
__global__ void score_key_kernel(const T* __restrict__ scores, int n,
                                 typename Bits<T>::type* __restrict__ keys,
                                 int32_t* __restrict__ indices) {
  using K = typename Bits<T>::type;
  constexpr K kSign = K(1) << (sizeof(K) * 8 - 1);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < n; k += stride) {
    const T score = scores[k] == T(0) ? T(0) : scores[k];  // -0.0 becomes 0.0
    K bits;
    memcpy(&bits, &score, sizeof(bits));
    keys[k] = bits & kSign ? bits : static_cast<K>(~bits & ~kSign);
    indices[k] = static_cast<int32_t>(k);
  }
}

}  // namespace

template <typename Key>
cudaError_t sort_pairs(void* scratch, size_t& scratch_bytes, const Key* keys, Key* sorted_keys,
                       const int32_t* values, int32_t* sorted_values, int n, int bits,
                       cudaStream_t stream) {
#ifndef TINYOPS_CUDASIM
  return cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, keys, sorted_keys, values,
                                         sorted_values, n, 0, bits, stream);
#else
  static_cast<void>(stream);
  if (!scratch) return scratch_bytes = 1, cudaSuccess;
  const Key mask = bits < static_cast<int>(sizeof(Key) * 8) ? (Key(1) << bits) - 1 : ~Key(0);
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int k = 0; k < n; ++k) {
    const int from = order[static_cast<size_t>(k)];
    sorted_keys[k] = keys[from];
    sorted_values[k] = values[from];
  }
  return cudaSuccess;
#endif
}

template <typename T>
cudaError_t rank_scores(void* scratch, size_t& scratch_bytes, const T* scores, int n,
                        int32_t* order, cudaStream_t stream) {
  using K = typename Bits<T>::type;
  constexpr int kBits = sizeof(K) * 8;
  size_t sort_bytes = 0;
  if (const cudaError_t error =
          sort_pairs<K>(nullptr, sort_bytes, nullptr, nullptr, nullptr, nullptr, n, kBits, stream))
    return error;
  Arena arena(scratch);
  K* const keys = arena.take<K>(n);
  K* const sorted_keys = arena.take<K>(n);
  int32_t* const indices = arena.take<int32_t>(n);
  void* const sort_scratch = arena.take<char>(static_cast<int64_t>(sort_bytes));
  if (!scratch) {
    scratch_bytes = static_cast<size_t>(arena.used());
    return cudaSuccess;
  }
  if (const cudaError_t error =
          cuda::launch(score_key_kernel<T>, cuda::grid_of(ceil_div(n, kThreads), 1, 1),
                       dim3(kThreads), stream, scores, n, keys, indices))
    return error;
  return sort_pairs<K>(sort_scratch, sort_bytes, keys, sorted_keys, indices, order, n, kBits,
                       stream);
}

#define TINYOPS_INSTANTIATE(T)                                                          \
  template cudaError_t sort_pairs(void*, size_t&, const Bits<T>::type*, Bits<T>::type*, \
                                  const int32_t*, int32_t*, int, int, cudaStream_t);    \
  template cudaError_t rank_scores(void*, size_t&, const T*, int, int32_t*, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops
