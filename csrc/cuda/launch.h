// Launch geometry, 16-byte vectors and sums, for every CUDA kernel. Plain C++ on the host side (no
// <<<>>>), so that the same files compile against csrc/tests/cudasim.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common.h"

namespace tinyops::cuda {

constexpr int kThreads = 256;

// Grids are (work inside a plane, planes or rows, images); every kernel strides over all three, so
// a clamped grid is still right.
inline dim3 grid_of(int64_t x, int64_t y, int64_t z) {
  constexpr int64_t kMaxX = (int64_t{1} << 31) - 1, kMaxYZ = 65535;
  const auto clamp = [](int64_t n, int64_t most) {
    return static_cast<unsigned>(std::max<int64_t>(1, std::min(n, most)));
  };
  return dim3(clamp(x, kMaxX), clamp(y, kMaxYZ), clamp(z, kMaxYZ));
}

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

// N elements that move in one access, by way of a type that is one access. A plain assignment of
// such a type is taken apart and stored element by element; the intrinsic is not.
template <int kBytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<2> {
  using type = unsigned short;
};

template <typename T, int N>
struct Vec {
  T v[N];
};
template <typename T>
constexpr int kVec16 = 16 / static_cast<int>(sizeof(T));

template <int N, typename T>
__device__ __forceinline__ Vec<T, N> load(const T* p) {
  using W = typename Word<N * sizeof(T)>::type;
  const W word = *reinterpret_cast<const W*>(p);
  Vec<T, N> v;
  memcpy(&v, &word, sizeof(v));
  return v;
}
template <int N, typename T>
__device__ __forceinline__ void store(T* p, const Vec<T, N>& v) {
  using W = typename Word<N * sizeof(T)>::type;
  W word;
  memcpy(&word, &v, sizeof(v));
  __stwb(reinterpret_cast<W*>(p), word);
}
// Whether vectors of 16 bytes may be read at every one of the addresses.
template <typename... P>
bool all_aligned(const P*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

template <typename A>
__device__ __forceinline__ A warp_sum(A v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

template <typename T>
__device__ __forceinline__ acc_t<T> widen(T x) {
  return static_cast<acc_t<T>>(x);
}

}  // namespace tinyops::cuda
