// Tests of cudasim's surroundings: shared memory, the order given by a seed, loops that wait, host
// threads, speed.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cudasim/check.h"

namespace {

using cudasim::check;
using cudasim::dynamic_shared;
using cudasim::launch;
using cudasim::message_of;

constexpr unsigned kAll = ~0u;  // lanes

// ---- Shared memory -------------------------------------------------------------------------

__global__ void keep_shared(float* before, float** where) {
  float* const s = dynamic_shared<float>();
  before[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
  where[blockIdx.x] = s;
  s[threadIdx.x] = 1;
}
#ifdef CUDASIM_ASAN
__global__ void overrun_shared() {
  dynamic_shared<char>()[threadIdx.x + 1] = 1;
}
__global__ void overrun_local(const int* size) {
  char local[40];
  char* volatile p = local;  // hides from the compiler what is wrong
  __syncthreads();
  p[*size] = 1;
}
template <typename Call>
bool dies(const Call& call) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    static_cast<void>(!std::freopen("/dev/null", "w", stderr));
    call();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}
#endif

void test_shared() {
  std::vector<float> before(3 * 50);
  std::vector<float*> where(3);
  launch(dim3(3), dim3(50), 50 * sizeof(float), keep_shared, before.data(), where.data());
  const auto nan = [](float x) { return std::isnan(x); };
  check(std::all_of(before.begin(), before.end(), nan), "shared memory starts as NaN");
  check(reinterpret_cast<uintptr_t>(where[0]) % 128 == 0, "shared memory is aligned");
#ifdef CUDASIM_ASAN
  const int size = 40;
  check(!dies([] { launch(dim3(1), dim3(64), 65, overrun_shared); }), "the last byte is usable");
  check(dies([] { launch(dim3(1), dim3(64), 64, overrun_shared); }), "ASan: shared memory overrun");
  check(dies([&] { launch(dim3(1), dim3(64), 0, overrun_local, &size); }), "ASan: stack overrun");
#endif
}

// ---- Order ---------------------------------------------------------------------------------

template <bool kRacy>
__global__ void block_sum(const int* in, int* out) {
  __shared__ int part[256];
  const unsigned t = threadIdx.x;
  part[t] = in[t];
  for (unsigned d = 128; d; d /= 2) {
    if (!kRacy || d != 64) __syncthreads();
    if (t < d) part[t] += part[t + d];
  }
  if (t == 0) *out = part[0];
}

template <bool kRacy>
__global__ void two_level_sum(const int* in, int* out) {
  __shared__ int part[8];
  int v = in[threadIdx.x];
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(kAll, v, d);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  if (!kRacy) __syncthreads();
  if (threadIdx.x == 0) {
    *out = 0;
    for (int w = 0; w < 8; ++w) *out += part[w];
    for (int w = 0; w < 8; ++w) part[w] = -1;  // `static` would keep the right sums
  }
}

int wrong_seeds(void (*kernel)(const int*, int*)) {
  std::vector<int> in(256);
  for (int i = 0; i < 256; ++i) in[static_cast<size_t>(i)] = i * i;
  int wrong = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    cudasim::set_seed(seed);
    int sum = 0;
    launch(dim3(1), dim3(256), 0, kernel, in.data(), &sum);
    wrong += sum != 255 * 256 * 511 / 6;
  }
  cudasim::set_seed(0);
  return wrong;
}

__global__ void write_order(int* out, int* next) {
  if (threadIdx.x == 0) out[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x + 10 * blockIdx.y);
  out[atomicAdd(next, 1)] = static_cast<int>(threadIdx.x);
}

void test_seeds() {
  const auto order = [](uint64_t seed, dim3 grid, dim3 block) {
    cudasim::set_seed(seed);
    std::vector<int> out(grid.x * grid.y * (block.x + 1));
    int next = 0;
    launch(grid, block, 0, write_order, out.data(), &next);
    return out;
  };
  check(order(0, dim3(2), dim3(3)) == std::vector<int>{0, 0, 1, 2, 1, 0, 1, 2}, "seed 0: in order");
  std::set<std::vector<int>> threads, blocks;
  bool whole = true;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    threads.insert(order(seed, dim3(1), dim3(6)));
    std::vector<int> b = order(seed, dim3(10, 3), dim3(1));
    whole &= b == order(seed, dim3(10, 3), dim3(1));
    blocks.insert(b);
    std::sort(b.begin(), b.end());
    for (int i = 0; i < 30; ++i) whole &= b[static_cast<size_t>(30 + i)] == i || i == 0;
  }
  check(threads.size() > 10 && blocks.size() > 10, "seeds differ in threads and blocks");
  check(whole, "the same seed gives the same order, and all blocks");

  const int tree = wrong_seeds(block_sum<true>), two_level = wrong_seeds(two_level_sum<true>);
  check(tree > 0 && two_level > 0, "a missing barrier is wrong for " + std::to_string(tree) +
                                       " and " + std::to_string(two_level) + " of 20 seeds");
  check(wrong_seeds(block_sum<false>) == 0 && wrong_seeds(two_level_sum<false>) == 0,
        "a right reduction is right for all seeds");
}

// ---- Loops that wait ------------------------------------------------------------------------

// Every thread waits for the one behind it, in its own block or in one that came before.
__global__ void wait_in_a_chain(volatile int* done, unsigned* ticket, int* sleeps) {
  __shared__ unsigned turn;
  if (threadIdx.x == 0) turn = atomicAdd(ticket, 1u);
  __syncthreads();
  const unsigned last = blockDim.x - 1, behind = last - threadIdx.x;
  const unsigned me = turn * blockDim.x + behind;
  while (me > 0 && !done[me - 1]) {
    atomicAdd(sleeps, 1);
    __nanosleep(20);
  }
  done[me] = 1;
}
__global__ void wait_after_failure(volatile int* never) {
  if (threadIdx.x == 5) throw std::runtime_error("fails while others wait");
  while (!*never) __nanosleep(20);
}
__global__ void wait_with_votes(volatile int* done) {
  const int me = static_cast<int>(blockDim.x - 1 - threadIdx.x);
  bool ready = false;
  while (true) {
    const bool moves = !ready && (me == 0 || done[me - 1]);
    if (moves) {
      done[me] = 1;
      ready = true;
    }
    if (__any_sync(kAll, moves)) continue;
    if (__all_sync(kAll, ready)) break;
    __nanosleep(20);
  }
}

void test_waiting() {
  constexpr size_t kThreads = 3 * 96;
  bool all = true, voted = true;
  int sleeps = 0;
  for (uint64_t seed = 0; seed <= 20; ++seed) {
    cudasim::set_seed(seed);
    std::vector<int> done(kThreads), with_votes(96);
    unsigned ticket = 0;
    launch(dim3(3), dim3(96), 0, wait_in_a_chain, done.data(), &ticket, &sleeps);
    launch(dim3(1), dim3(96), 0, wait_with_votes, with_votes.data());
    all &= std::count(done.begin(), done.end(), 1) == kThreads;
    voted &= std::count(with_votes.begin(), with_votes.end(), 1) == 96;
  }
  check(all, "threads that sleep let the others run");
  check(voted, "warps that vote and sleep let the others run");
  check(sleeps > 0, "some threads had to wait");
  for (uint64_t seed = 0; seed <= 5; ++seed) {
    cudasim::set_seed(seed);
    int never = 0;
    check(message_of([&] { launch(dim3(1), dim3(64), 0, wait_after_failure, &never); }) ==
              "fails while others wait",
          "a failure ends the threads that sleep, seed " + std::to_string(seed));
  }
  cudasim::set_seed(0);
}

// ---- Host threads, speed -------------------------------------------------------------------

__global__ void sum_by_barriers(int* out, int rounds) {
  __shared__ int ring[300];
  const unsigned t = threadIdx.x, n = blockDim.x;
  int value = static_cast<int>(t);
  for (int r = 0; r < rounds; ++r) {
    ring[t] = value;
    __syncthreads();
    value += ring[(t + 1) % n];
    __syncthreads();
  }
  out[t] = value;
}
__global__ void fail(int* out) {
  __syncthreads();
  if (threadIdx.x == 9) throw std::runtime_error("fails");
  __syncthreads();
  *out = -1;
}

void test_host_threads() {
  std::vector<int> good(8);
  std::vector<std::thread> threads;
  for (int& ok : good)
    threads.emplace_back([&ok] {
      int out[300];
      ok = 1;
      for (int i = 0; i < 20; ++i) {
        launch(dim3(2), dim3(300), 0, sum_by_barriers, out, 2);
        ok &= out[0] == 0 + 2 * 1 + 2 && out[299] == 299 + 2 * 0 + 1;
        ok &= message_of([&] { launch(dim3(1), dim3(64), 0, fail, out); }) == "fails";
        ok &= out[0] == 4;
      }
    });
  for (std::thread& t : threads) t.join();
  check(std::count(good.begin(), good.end(), 1) == 8, "launches from several host threads");
}

__global__ void write_thread(unsigned* out) {
  out[threadIdx.x] = threadIdx.x;
}
__global__ void only_barriers(int count) {
  for (int i = 0; i < count; ++i) __syncthreads();
}
__global__ void only_shuffles(int count) {
  for (int i = 0; i < count; ++i) __shfl_xor_sync(kAll, i, 1);
}

template <typename... P>
double nanoseconds_per_thread(unsigned blocks, void (*kernel)(P...), P... args) {
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    launch(dim3(blocks), dim3(256), 0, kernel, args...);
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
    best = std::min(best, spent.count() / (blocks * 256.0));
  }
  return best;
}

void report_speed() {
  unsigned out[256];
  std::printf(
      "ns per thread: trivial kernel %.1f, one barrier %.1f, each further one %.1f, "
      "shuffle %.1f\n",
      nanoseconds_per_thread<unsigned*>(1000, write_thread, out),
      nanoseconds_per_thread(1000, only_barriers, 1),
      nanoseconds_per_thread(10, only_barriers, 100) / 100,
      nanoseconds_per_thread(10, only_shuffles, 100) / 100);
}

}  // namespace

int main() {
  test_shared();
  test_host_threads();
  test_seeds();
  test_waiting();
  report_speed();
  return cudasim::summary();
}
