// Stream compaction: a count per chunk of kThreads elements, a scan of the counts by one block, and
// a kernel that counts again inside its chunk. The marks are read twice.
#include "select.h"

#include "launch.h"

namespace tinyops {
namespace {

using cuda::kThreads;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

// How many of the threads before this one in the block are marked, and how many in all.
// Called once in a kernel.
__device__ int marked_before(bool marked, int& total) {
  __shared__ int counts[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned ballot = __ballot_sync(kAll, marked);
  if (lane == 0) counts[warp] = __popc(ballot);
  __syncthreads();
  int before = __popc(ballot & ((1u << lane) - 1));
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += counts[w];
    total += counts[w];
  }
  return before;
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint8_t* __restrict__ marks, int n, int32_t* __restrict__ counts) {
  const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
  int total;
  marked_before(k < static_cast<unsigned>(n) && marks[k] == 1, total);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// In place, by one block.
__global__ void __launch_bounds__(kThreads)
    scan_kernel(int32_t* counts, int chunks, int64_t most, int64_t* __restrict__ count) {
  __shared__ int sums[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0;
  for (int first = 0; first < chunks; first += kThreads) {
    const int k = first + static_cast<int>(threadIdx.x);
    const int own = k < chunks ? counts[k] : 0;
    int sum = own;  // of this lane and those before it
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(kAll, sum, d);
      if (lane >= d) sum += other;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) sum += sums[w];
      all += sums[w];
    }
    if (k < chunks) counts[k] = before + sum - own;
    before += all;
    __syncthreads();  // sums is written again
  }
  if (threadIdx.x == 0) {
    counts[chunks] = before;
    if (count) *count = before < most ? before : most;
  }
}

__global__ void __launch_bounds__(kThreads)
    take_kernel(const uint8_t* __restrict__ marks, const int32_t* __restrict__ list, int n,
                const int32_t* __restrict__ before, int64_t most, int64_t* __restrict__ out) {
  const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
  const bool marked = k < static_cast<unsigned>(n) && marks[k] == 1;
  int total;
  const int at = before[blockIdx.x] + marked_before(marked, total);
  if (marked && at < most) out[at] = list[k];
}

__global__ void __launch_bounds__(kThreads)
    partition_kernel(const uint8_t* __restrict__ marks, const int32_t* __restrict__ list, int n,
                     const int32_t* __restrict__ before, int32_t* __restrict__ out) {
  const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
  const bool inside = k < static_cast<unsigned>(n), marked = inside && marks[k] == 1;
  int total;
  const int at = before[blockIdx.x] + marked_before(marked, total);
  if (inside) out[marked ? at : before[gridDim.x] + static_cast<int>(k) - at] = list[k];
}

}  // namespace

Selection::Selection(Arena& arena, int64_t n)
    : before(arena.take<int32_t>(ceil_div(n, kThreads) + 1)),
      chunks(static_cast<int>(ceil_div(n, kThreads))) {}

cudaError_t count_marked(const Selection& s, const uint8_t* marks, int n, int64_t most,
                         int64_t* count, cudaStream_t stream) {
  const cudaError_t error = cuda::launch(count_kernel, cuda::grid_of(s.chunks, 1, 1),
                                         dim3(kThreads), stream, marks, n, s.before);
  if (error) return error;
  return cuda::launch(scan_kernel, dim3(1), dim3(kThreads), stream, s.before, s.chunks, most,
                      count);
}

cudaError_t take_marked(const Selection& s, const uint8_t* marks, const int32_t* list, int n,
                        int64_t most, int64_t* out, cudaStream_t stream) {
  return cuda::launch(take_kernel, cuda::grid_of(s.chunks, 1, 1), dim3(kThreads), stream, marks,
                      list, n, s.before, most, out);
}

cudaError_t put_marked_first(const Selection& s, const uint8_t* marks, const int32_t* list, int n,
                             int32_t* out, cudaStream_t stream) {
  return cuda::launch(partition_kernel, cuda::grid_of(s.chunks, 1, 1), dim3(kThreads), stream,
                      marks, list, n, s.before, out);
}

}  // namespace tinyops
