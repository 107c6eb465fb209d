// Looks for boxes and scores that no operator accepts. One thread per element, one atomic per bad
// one; reads every element once.
#include "boxes.h"
#include "launch.h"

namespace tinyops {
namespace {

using cuda::kThreads;

template <typename T>
__device__ bool is_finite(T x) {
  return x - x == T(0);
}

template <typename T>
__global__ void bad_box_kernel(const Box<T>* __restrict__ boxes, int64_t n,
                               unsigned long long* __restrict__ result) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1  // unrolled, the number of rounds takes a 64-bit division
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < n; k += stride) {
    const Box<T> b = boxes[k];
    const bool finite = is_finite(b.x1) && is_finite(b.y1) && is_finite(b.x2) && is_finite(b.y2);
    if (!(finite && b.x1 <= b.x2 && b.y1 <= b.y2))
      atomicMin(result, static_cast<unsigned long long>(k));
  }
}

template <typename T>
__global__ void nan_kernel(const T* __restrict__ values, int64_t n,
                           unsigned long long* __restrict__ result) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1  // unrolled, the number of rounds takes a 64-bit division
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < n; k += stride) {
    if (values[k] != values[k]) atomicMin(result, static_cast<unsigned long long>(k));
  }
}

dim3 blocks_of(int64_t n) {
  return cuda::grid_of(std::min<int64_t>(ceil_div(n, kThreads), 4096), 1, 1);
}

}  // namespace

template <typename T>
cudaError_t first_bad_box_cuda(const Box<T>* boxes, int64_t n, unsigned long long* result,
                               cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return cuda::launch(bad_box_kernel<T>, blocks_of(n), kThreads, stream, boxes, n, result);
}
template <typename T>
cudaError_t first_nan_cuda(const T* values, int64_t n, unsigned long long* result,
                           cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return cuda::launch(nan_kernel<T>, blocks_of(n), kThreads, stream, values, n, result);
}

template cudaError_t first_bad_box_cuda(const Box<float>*, int64_t, unsigned long long*,
                                        cudaStream_t);
template cudaError_t first_bad_box_cuda(const Box<double>*, int64_t, unsigned long long*,
                                        cudaStream_t);
template cudaError_t first_nan_cuda(const float*, int64_t, unsigned long long*, cudaStream_t);
template cudaError_t first_nan_cuda(const double*, int64_t, unsigned long long*, cudaStream_t);

}  // namespace tinyops
