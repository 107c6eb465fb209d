// cudasim: enough of CUDA for g++ to compile the real .cu files and run them in host memory.
//
// Put this directory first on the include path and compile a .cu file with `g++ -x c++`. Kernels
// are started by cudaLaunchKernelEx() alone, since <<<>>> is not C++.
//
// What differs from a GPU:
//  - __shared__ variables are `static`: not cleared or poisoned between blocks. Dynamic shared
//    memory comes from cudasim::dynamic_shared<T>() and is full of NaN when a block starts.
//  - Blocks run one after another, and a thread runs until it waits. A loop that spins until some
//    other thread of the block writes must call __nanosleep(), which lets the others run, and one
//    that waits for a block that has not started never ends; races show by comparing seeds
//    (TINYOPS_SIM_SEED).
//  - Device code is host code: no limit on registers, and host maths instead of the fast kind.
#pragma once

#include <cstring>
#include <tuple>
#include <utility>

#include "executor.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline
#define __noinline__  // empty: system headers write __attribute__((__noinline__))

inline constexpr int warpSize = 32;

// ---- Vector types: the alignment is CUDA's, so UBSan sees a misaligned access -----------------

#define CUDASIM_VECTOR_TYPES(name, T)                             \
  struct __align__(2 * sizeof(T)) name##2 {                       \
    T x, y;                                                       \
  };                                                              \
  struct name##3 {                                                \
    T x, y, z;                                                    \
  };                                                              \
  struct __align__(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { \
    T x, y, z, w;                                                 \
  };                                                              \
  constexpr name##2 make_##name##2(T x, T y) {                    \
    return {x, y};                                                \
  }                                                               \
  constexpr name##3 make_##name##3(T x, T y, T z) {               \
    return {x, y, z};                                             \
  }                                                               \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) {          \
    return {x, y, z, w};                                          \
  }
CUDASIM_VECTOR_TYPES(uchar, unsigned char)
CUDASIM_VECTOR_TYPES(short, short)
CUDASIM_VECTOR_TYPES(ushort, unsigned short)
CUDASIM_VECTOR_TYPES(int, int)
CUDASIM_VECTOR_TYPES(longlong, long long)
CUDASIM_VECTOR_TYPES(ulonglong, unsigned long long)
CUDASIM_VECTOR_TYPES(float, float)
CUDASIM_VECTOR_TYPES(double, double)
#undef CUDASIM_VECTOR_TYPES

struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
constexpr uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// ---- Host side: errors, launches, copies ---------------------------------------------------

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorUnknown = 999,
};
using cudaError_t = cudaError;
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};

struct cudaLaunchAttribute;  // ignored
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;  // ignored: everything is synchronous
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cudasim {

inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// The checks of the driver, with the limits that all GPUs of compute capability 5 and above share.
inline cudaError_t check_launch(const cudaLaunchConfig_t& config) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const bool empty = !grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z;
  const bool grid_fits = grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  const bool block_fits = block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
                          uint64_t{block.x} * block.y * block.z <= 1024;
  if (empty || !grid_fits || !block_fits) return cudaErrorInvalidConfiguration;
  // More needs cudaFuncSetAttribute() on a GPU, which is not simulated.
  return config.dynamicSmemBytes > 48 * 1024 ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace cudasim

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... args) {
  if (const cudaError_t error = cudasim::check_launch(*config)) return cudasim::remember(error);
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> parameters;  // each thread is called with copies of them
  };
  const Call call{kernel, std::tuple<P...>(std::forward<A>(args)...)};
  const auto invoke = [](const void* c) {
    std::apply(static_cast<const Call*>(c)->kernel, static_cast<const Call*>(c)->parameters);
  };
  cudasim::executor.launch(config->gridDim, config->blockDim, config->dynamicSmemBytes, invoke,
                           &call);
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  return std::exchange(cudasim::last_error, cudaSuccess);
}
inline cudaError_t cudaPeekAtLastError() {
  return cudasim::last_error;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorUnknown: return "unknown error";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  if (!to && bytes) return cudasim::remember(cudaErrorInvalidValue);
  if (bytes) std::memset(to, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  if ((!to || !from) && bytes) return cudasim::remember(cudaErrorInvalidValue);
  if (bytes) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

#include "device.h"
