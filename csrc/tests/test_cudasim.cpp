// Tests of cudasim's executor: launches, barriers, warp operations, failures.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cudasim/check.h"

namespace {

using cudasim::check;
using cudasim::launch;
using cudasim::message_of;

constexpr unsigned kAll = ~0u;  // lanes

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// ---- Indices, launches ---------------------------------------------------------------------

__device__ __forceinline__ unsigned linear(uint3 i, dim3 n) {
  return (i.z * n.y + i.y) * n.x + i.x;
}

__global__ void __launch_bounds__(256) write_indices(unsigned* __restrict__ out) {
  const unsigned per_block = blockDim.x * blockDim.y * blockDim.z;
  out[linear(blockIdx, gridDim) * per_block + linear(threadIdx, blockDim)] += 1;
}

__global__ void write_thread(unsigned* out) {
  out[threadIdx.x] = threadIdx.x;
}

template <typename T>
__global__ void add_pair(T* out, const T a, float b) {
  *out = a + static_cast<T>(b);
}

void test_launch() {
  const dim3 grid(3, 5, 2), block(4, 3, 7);
  std::vector<unsigned> seen(3 * 5 * 2 * 4 * 3 * 7);
  bool ok = launch(grid, block, 0, write_indices, seen.data()) == cudaSuccess;
  for (const unsigned n : seen) ok &= n == 1;
  check(ok, "every 3-D index is visited once");

  double sum = 0;
  launch(dim3(1), dim3(1), 0, add_pair<double>, &sum, 1, 2.0);  // int to double, double to float
  check(sum == 3, "arguments convert to the kernel's parameters");

  unsigned out[1024];
  ok = true;
  for (const dim3 bad :
       {dim3(0), dim3(1, 0), dim3(1, 1, 0), dim3(0x80000000u), dim3(1, 65536), dim3(1, 1, 65536)}) {
    ok &= launch(bad, dim3(1), 0, write_thread, out) == cudaErrorInvalidConfiguration;
    ok &= cudaPeekAtLastError() == cudaErrorInvalidConfiguration;
    ok &= cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess;
  }
  for (const dim3 bad : {dim3(0), dim3(1, 0), dim3(1, 1, 0), dim3(1025), dim3(1, 1025),
                         dim3(1, 1, 65), dim3(32, 33), dim3(65536, 65536)})
    ok &= launch(dim3(1), bad, 0, write_thread, out) == cudaErrorInvalidConfiguration;
  cudaGetLastError();
  check(ok, "sizes outside the limits are refused and remembered");
  ok = launch(dim3(1), dim3(1024), 48 << 10, write_thread, out) == cudaSuccess && out[1023] == 1023;
  ok &= launch(dim3(1), dim3(1), (48 << 10) + 1, write_thread, out) == cudaErrorInvalidValue;
  check(ok && cudaGetLastError() == cudaErrorInvalidValue, "48 KiB of shared memory is the limit");
  check(std::string(cudaGetErrorString(cudaErrorInvalidConfiguration)) ==
            "invalid configuration argument",
        "errors have CUDA's text");

  int a[4], b[4];
  ok = cudaMemsetAsync(a, 0xff, sizeof a) == cudaSuccess && a[3] == -1;
  ok &= cudaMemcpyAsync(b, a, sizeof a, cudaMemcpyDeviceToDevice) == cudaSuccess && b[3] == -1;
  ok &= cudaMemsetAsync(nullptr, 0, 1) == cudaErrorInvalidValue;
  check(ok && cudaGetLastError() == cudaErrorInvalidValue, "memset and memcpy");
}

// ---- Block barriers ------------------------------------------------------------------------

__global__ void block_votes(int* out) {
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  for (int limit = 0; limit <= n; ++limit) {
    const int count = __syncthreads_count(t < limit);
    const int any = __syncthreads_or(t < limit), all = __syncthreads_and(t < limit);
    out[t] += count == limit && any == (limit > 0) && all == (limit == n);
  }
}

__global__ void rotate(int* out, int rounds) {  // each barrier separates a write from a read
  __shared__ int ring[1024];
  const unsigned t = threadIdx.x, n = blockDim.x;
  int value = static_cast<int>(t);
  for (int r = 0; r < rounds; ++r) {
    ring[t] = value;
    __syncthreads();
    value = ring[(t + 1) % n];
    __syncthreads();
  }
  out[t] = value;
}

__global__ void exit_early(int* out) {
  if (threadIdx.x % 3 == 0) return;
  const int left = __syncthreads_count(1);
  if (threadIdx.x % 3 == 1) return;  // exits while the others may wait already
  __syncthreads();
  out[threadIdx.x] = left * 1000 + __popc(__ballot_sync(kAll, 1));
}

void test_barriers() {
  for (const unsigned n : {1u, 31u, 32u, 40u, 256u, 1023u, 1024u}) {
    std::vector<int> votes(n), ring(n);
    launch(dim3(1), dim3(n), 0, block_votes, votes.data());
    launch(dim3(2), dim3(n), 0, rotate, ring.data(), 5);
    bool ok = true;
    for (unsigned t = 0; t < n; ++t) {
      ok &= votes[t] == static_cast<int>(n) + 1;
      ok &= ring[t] == static_cast<int>((t + 5) % n);
    }
    check(ok, "__syncthreads and its votes, block of " + std::to_string(n));
  }
  std::vector<int> out(100);
  launch(dim3(1), dim3(100), 0, exit_early, out.data());
  bool ok = true;
  for (unsigned t = 0; t < 100; ++t) {
    int lanes = 0;
    for (unsigned k = t / 32 * 32; k < std::min(100u, t / 32 * 32 + 32); ++k) lanes += k % 3 == 2;
    ok &= out[t] == (t % 3 == 2 ? 66 * 1000 + lanes : 0);
  }
  check(ok, "threads that have exited are not waited for");
}

// ---- Warp operations -----------------------------------------------------------------------

__global__ void all_shuffles(int* wrong) {
  const int lane = static_cast<int>(threadIdx.x), id = lane * 7 + 1;
  for (int width = 1; width <= 32; width *= 2) {
    const int first = lane / width * width, last = first + width - 1;
    for (int d = 0; d < 32; ++d) {
      const int up = lane - d < first ? lane : lane - d, down = lane + d > last ? lane : lane + d;
      const int other = (lane ^ d) > last ? lane : lane ^ d;
      *wrong += __shfl_sync(kAll, id, d, width) != (first + d % width) * 7 + 1;
      *wrong += __shfl_up_sync(kAll, id, static_cast<unsigned>(d), width) != up * 7 + 1;
      *wrong += __shfl_down_sync(kAll, id, static_cast<unsigned>(d), width) != down * 7 + 1;
      *wrong += __shfl_xor_sync(kAll, id, d, width) != other * 7 + 1;
    }
  }
  *wrong += __shfl_sync(kAll, lane + 0x1p-40, 3) != 3 + 0x1p-40;
  *wrong += __shfl_sync(kAll, static_cast<long long>(lane) << 40, 5) != 5LL << 40;
  *wrong += static_cast<float>(__shfl_sync(kAll, __half(lane * 0.5f), 9)) != 4.5f;
}

__global__ void warp_votes(int* wrong) {
  const unsigned lane = threadIdx.x % 32, live = blockDim.x - threadIdx.x / 32 * 32;
  const unsigned present = live >= 32 ? kAll : (1u << live) - 1;
  *wrong += __ballot_sync(kAll, lane & 1) != (0xaaaaaaaau & present);
  *wrong += __any_sync(present, lane == 4) != static_cast<int>(present >> 4 & 1);
  *wrong += __all_sync(kAll, lane < 32) != 1;
  *wrong += __all_sync(kAll, lane != 2) != !(present >> 2 & 1);
  // Two halves that never meet, with different numbers of operations.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  for (unsigned i = 0; i < (lane < 16 ? 3u : 8u); ++i) {
    *wrong += __ballot_sync(half, 1) != (half & present);
    __syncwarp(half);
  }
  *wrong += !(__activemask() >> lane & 1);
}

__global__ void partial_warp_sum(float* out) {
  float v = 1;
  const unsigned live = blockDim.x - threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
  const unsigned mask = live >= 32 ? kAll : (1u << live) - 1;
  for (unsigned d = 16; d; d /= 2) {
    const float other = __shfl_down_sync(mask, v, d);
    if (lane + d < live) v += other;
  }
  if (lane == 0) atomicAdd(out, v);
}

__global__ void read_missing_lane(float* out, int* bits) {
  *out = __shfl_sync(kAll, 1.0f, 20);
  *bits = __shfl_xor_sync(kAll, 1, 16);
}

void test_warps() {
  int wrong = 0;
  launch(dim3(1), dim3(32), 0, all_shuffles, &wrong);
  check(wrong == 0, "shuffles of all kinds and widths");
  for (const unsigned n : {1u, 5u, 32u, 40u, 63u, 1000u})
    launch(dim3(1), dim3(n), 0, warp_votes, &wrong);
  check(wrong == 0, "ballots, votes, masks of half a warp");
  bool ok = true;
  for (const unsigned n : {1u, 33u, 40u, 250u, 1024u}) {
    float sum = 0;
    launch(dim3(1), dim3(n), 0, partial_warp_sum, &sum);
    ok &= sum == static_cast<float>(n);
  }
  check(ok, "sums of partial warps");
  float value = 0;
  int bits = 0;
  launch(dim3(1), dim3(10), 0, read_missing_lane, &value, &bits);
  check(std::isnan(value) && bits == -1, "a lane that takes no part gives NaN, or -1");
}

// ---- Failures ------------------------------------------------------------------------------

struct Counted {  // a local variable that must be destroyed when its thread is cancelled
  inline static int alive = 0;
  Counted() { ++alive; }
  ~Counted() { --alive; }
};

__global__ void mixed_barriers(int bad_block) {
  const Counted counted;
  if (threadIdx.x >= 60) return;
  __syncthreads();
  if (static_cast<int>(blockIdx.y) == bad_block && threadIdx.x < 16)
    __syncwarp(0x0001ffff);  // lane 16 will never come
  else
    __syncthreads();
}
__global__ void wrong_mask() {
  __syncwarp(threadIdx.x == 3 ? 1u : ~1u);
}
__global__ void different_operations() {
  if (threadIdx.x & 1) {
    __syncwarp();
  } else {
    __ballot_sync(kAll, 1);
  }
}
__global__ void throw_at(unsigned thread) {
  const Counted counted;
  __syncthreads();
  if (threadIdx.x == thread) throw std::out_of_range("thread " + std::to_string(thread));
  __syncthreads();
}
__global__ void bad_width(int width) {
  __shfl_xor_sync(kAll, 1, 1, width);
}
__global__ void nested() {
  launch(dim3(1), dim3(1), 0, bad_width, 32);
}

void test_failures() {
  bool ok = true;
  std::string text;
  for (int i = 0; i < 200; ++i) {
    text = message_of([] { launch(dim3(1, 3), dim3(64), 0, mixed_barriers, 1); });
    ok &= contains(text, "block (0, 1, 0) cannot proceed") && Counted::alive == 0;
    ok &= contains(text, "44 threads wait at __syncthreads, the first is (16, 0, 0)");
    ok &= contains(text, "16 threads wait at __syncwarp, the first is (0, 0, 0)");
    ok &= contains(text, "60 of 64 threads have not exited") && contains(text, "0x0001ffff");
    ok &= message_of([] { launch(dim3(1, 3), dim3(64), 0, mixed_barriers, -1); }).empty();
  }
  check(ok, "a barrier that cannot complete is reported: " + text);
  const auto run = [](auto kernel, auto... args) {
    return message_of([&] { launch(dim3(1), dim3(64), 0, kernel, args...); });
  };
  check(contains(run(wrong_mask), "missing from its own warp mask"), "a mask without oneself");
  text = run(different_operations);
  check(contains(text, "32 threads wait at __syncwarp") && contains(text, "__ballot_sync"),
        "lanes that meet at different operations");
  check(run(throw_at, 5u) == "thread 5" && run(throw_at, 63u) == "thread 63" && !Counted::alive,
        "an exception of a kernel reaches the caller");
  check(contains(run(bad_width, 12), "not 12") && run(bad_width, 8).empty(), "width of a shuffle");
  check(contains(run(nested), "cannot launch a kernel"), "no kernel within a kernel");
  check(contains(message_of([] { __syncthreads(); }), "outside a kernel"), "no kernel at all");
  int out[64];
  launch(dim3(2), dim3(64), 0, rotate, out, 3);
  check(out[0] == 3 && out[63] == 2, "the simulator works after a failure");
}

}  // namespace

int main() {
  test_launch();
  test_barriers();
  test_warps();
  test_failures();
  return cudasim::summary();
}
