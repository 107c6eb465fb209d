// Shared by every kernel, CPU and CUDA. No torch header, so that kernel files compile in seconds.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define TINYOPS_HD __host__ __device__ __forceinline__
#else
// Always inlined: see the remark on linkage in cpu/simd.h.
#define TINYOPS_HD inline __attribute__((always_inline))
#endif

namespace tinyops {

// The 16-bit floats as the CPU kernels see them: storage only, arithmetic is done in acc_t.
struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

// Accumulation type: double for double, float for everything narrower.
template <typename T>
struct acc {
  using type = float;
};
template <>
struct acc<double> {
  using type = double;
};
template <typename T>
using acc_t = typename acc<T>::type;

TINYOPS_HD int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace tinyops
