// sample_negatives on the GPU, without host synchronisation: one kernel draws the time of arrival
// of every item, a radix selection over 11 bits at a time finds the last item of the sample
// (kernels after the one that decides it return at once), one kernel collects the sample, and a
// bitonic sort puts it in order. Moves 9 + 8 bytes per item (float32) once, and 8 per pass of the
// selection.
#include "launch.h"
#include "sample_negatives.h"

namespace tinyops::sample_negatives {
namespace {

using cuda::kThreads;
using ull = unsigned long long;

constexpr ull kAbsent = ~ull{0};  // the time of what is no candidate; above that of any candidate
constexpr int kMostBlocks = 1024;

dim3 blocks_of(int64_t n) {
  return cuda::grid_of(std::min<int64_t>(ceil_div(n, kThreads), kMostBlocks), 1, 1);
}

// ---- Times ------------------------------------------------------------------------------------

template <typename T>
__device__ ull time_of(const Input<T>& in, uint32_t item, uint32_t high, uint32_t low,
                       State* state) {
  if (!in.candidates[item]) return kAbsent;
  const T score = in.scores[item], overlap = in.overlaps[item];
  const bool bad_score = score - score != T(0);
  if (bad_score || overlap - overlap != T(0))
    atomicMax(&state->bad, ~(ull{item} * 2 + (bad_score ? 0 : 1)));
  return arrival(high, low, logit(in.weights, score, overlap));
}

// One thread per Philox block, which serves four items.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    time_kernel(Input<T> in, ull* __restrict__ times, State* state) {
  const auto seed = static_cast<uint64_t>(in.seed ? *in.seed : in.seed_value);
  const uint32_t n = static_cast<uint32_t>(in.n), groups = (n + (kGroup - 1)) / kGroup;
  const uint32_t blocks = groups * kBlocksPerGroup, stride = gridDim.x * blockDim.x;
  unsigned candidates = 0;
  for (uint32_t b = blockIdx.x * blockDim.x + threadIdx.x; b < blocks; b += stride) {
    const philox::Block high = random_block(seed, b, 0), low = random_block(seed, b, 1);
#pragma unroll
    for (uint32_t word = 0; word < 4; ++word) {
      const uint32_t item = item_of(b, word);
      if (item >= n) continue;
      const ull time = time_of(in, item, high.word[word], low.word[word], state);
      times[item] = time;
      candidates += time != kAbsent;
    }
  }
  candidates = cuda::warp_sum(candidates);
  if (threadIdx.x % 32 == 0 && candidates) atomicAdd(&state->candidates, candidates);
}

// ---- Selection --------------------------------------------------------------------------------

// Digits from the highest: six of the time, then three of the item, which breaks ties.
constexpr int kTimeDigits = 6, kDigits = 9;
struct Digit {
  bool of_time;
  int shift, bits;
};
TINYOPS_HD Digit digit_at(int pass) {
  const bool of_time = pass < kTimeDigits;
  const int total = of_time ? 64 : 32, above = (of_time ? pass : pass - kTimeDigits) * kDigitBits;
  const int shift = total - above - kDigitBits;
  return {of_time, shift < 0 ? 0 : shift, shift < 0 ? kDigitBits + shift : kDigitBits};
}
__device__ unsigned value_of(const Digit& d, ull time, uint32_t item) {
  return static_cast<unsigned>((d.of_time ? time : item) >> d.shift) & ((1u << d.bits) - 1);
}
// Whether an item has all higher digits in common with the last one of the sample.
__device__ bool matches(const Digit& d, ull time, uint32_t item, ull last_time,
                        uint32_t last_item) {
  const int above = d.shift + d.bits;
  if (d.of_time) return above == 64 || time >> above == last_time >> above;
  return time == last_time && (above == 32 || item >> above == last_item >> above);
}

// The digit of the last item, by the last block to finish: the bin in which the rank is reached.
__device__ void decide(const Digit& d, bool is_first, unsigned most, State* state) {
  __shared__ unsigned sums[kThreads];
  constexpr int kOwn = kBins / kThreads;
  const unsigned t = threadIdx.x;
  unsigned own[kOwn], sum = 0;
  for (int k = 0; k < kOwn; ++k) {
    volatile unsigned* bin = &state->histogram[t * kOwn + k];
    own[k] = *bin;
    *bin = 0;  // for the next pass
    sum += own[k];
  }
  sums[t] = sum;
  const unsigned total = state->candidates;
  const unsigned rank = is_first ? (most < total ? most : total) : state->rank;
  const ull time = state->time;
  const unsigned item = state->item;
  __syncthreads();
  unsigned before = 0;
  for (unsigned k = 0; k < t; ++k) before += sums[k];
  if (t == 0) state->ticket = 0;
  if (rank == 0 || (is_first && rank == total)) {  // nothing or everything
    if (t == 0) {
      state->decided = 1;
      state->time = rank == 0 ? 0 : kAbsent - 1;
      state->item = rank == 0 ? 0 : ~0u;
    }
    return;
  }
  if (rank <= before || rank > before + sum) return;
  for (unsigned k = 0; k < kOwn; ++k) {  // one thread comes here
    if (rank > before + own[k]) {
      before += own[k];
      continue;
    }
    const ull value = t * kOwn + k;
    // All of the bin: whatever the lower digits are, they belong to the sample.
    const bool all = rank - before == own[k];
    const ull rest = all ? (ull{1} << d.shift) - 1 : 0;
    if (d.of_time) state->time = time | value << d.shift | rest;
    state->item =
        d.of_time ? (all ? ~0u : 0) : static_cast<unsigned>(item | value << d.shift | rest);
    state->rank = rank - before;
    state->decided = all;
    return;
  }
}

__global__ void __launch_bounds__(kThreads) select_kernel(const ull* __restrict__ times, uint32_t n,
                                                          int pass, unsigned most, State* state) {
  __shared__ unsigned bins[kBins];
  __shared__ bool is_last;
  if (state->decided) return;
  const Digit d = digit_at(pass);
  const ull last_time = state->time;
  const uint32_t last_item = state->item;
  for (unsigned k = threadIdx.x; k < kBins; k += kThreads) bins[k] = 0;
  __syncthreads();
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < n; item += stride) {
    const ull time = times[item];
    if (time != kAbsent && matches(d, time, item, last_time, last_item))
      atomicAdd(&bins[value_of(d, time, item)], 1u);
  }
  __syncthreads();
  for (unsigned k = threadIdx.x; k < kBins; k += kThreads)
    if (bins[k]) atomicAdd(&state->histogram[k], bins[k]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&state->ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  decide(d, pass == 0, most, state);
}

__global__ void __launch_bounds__(kThreads)
    collect_kernel(const ull* __restrict__ times, uint32_t n, ull* __restrict__ sampled,
                   uint32_t* __restrict__ items, State* state) {
  const ull last_time = state->time;
  const uint32_t last_item = state->item, stride = gridDim.x * blockDim.x;
  for (uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < n; item += stride) {
    const ull time = times[item];
    if (time == kAbsent || time > last_time || (time == last_time && item > last_item)) continue;
    const unsigned place = atomicAdd(&state->taken, 1u);
    sampled[place] = time;
    items[place] = item;
  }
}

// ---- Sort -------------------------------------------------------------------------------------

constexpr int kSegment = 1024;  // what one block sorts in shared memory: 12 bytes each

struct Arrived {
  ull time;
  uint32_t item;
};
__device__ bool is_behind(const Arrived& a, const Arrived& b) {
  return a.time != b.time ? a.time > b.time : a.item > b.item;
}
// The lower element of pair `t` of a bitonic step; the other is `stride` above.
__device__ uint32_t lower_of(uint32_t t, uint32_t stride) {
  return (t & ~(stride - 1)) * 2 + (t & (stride - 1));
}

// The steps of a bitonic sort of sizes `first` to `last` with strides inside a segment. The first
// kernel of a sort pads the sample.
__global__ void __launch_bounds__(kThreads)
    sort_segment_kernel(ull* __restrict__ sampled, uint32_t* __restrict__ items, uint32_t first,
                        uint32_t last, bool pads, const State* state) {
  __shared__ ull times_of[kSegment];
  __shared__ uint32_t items_of[kSegment];
  const uint32_t base = blockIdx.x * kSegment, taken = pads ? state->taken : ~0u;
  for (uint32_t k = threadIdx.x; k < kSegment; k += kThreads) {
    const bool present = base + k < taken;
    times_of[k] = present ? sampled[base + k] : kAbsent;
    items_of[k] = present ? items[base + k] : ~0u;
  }
  for (ull size = first; size <= last; size *= 2) {
    const ull most = size / 2 < kSegment / 2 ? size / 2 : kSegment / 2;
    for (uint32_t stride = most; stride; stride /= 2) {
      __syncthreads();
      for (uint32_t t = threadIdx.x; t < kSegment / 2; t += kThreads) {
        const uint32_t i = lower_of(t, stride), j = i + stride;
        const Arrived a{times_of[i], items_of[i]}, b{times_of[j], items_of[j]};
        if (is_behind(a, b) == (((base + i) & size) == 0)) {
          times_of[i] = b.time, items_of[i] = b.item;
          times_of[j] = a.time, items_of[j] = a.item;
        }
      }
    }
  }
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < kSegment; k += kThreads) {
    sampled[base + k] = times_of[k];
    items[base + k] = items_of[k];
  }
}

// One step with a stride of at least a segment.
__global__ void __launch_bounds__(kThreads)
    sort_step_kernel(ull* __restrict__ sampled, uint32_t* __restrict__ items, uint32_t pairs,
                     uint32_t size, uint32_t stride) {
  const uint32_t threads = gridDim.x * blockDim.x;
  for (uint32_t t = blockIdx.x * blockDim.x + threadIdx.x; t < pairs; t += threads) {
    const uint32_t i = lower_of(t, stride), j = i + stride;
    const Arrived a{sampled[i], items[i]}, b{sampled[j], items[j]};
    if (is_behind(a, b) == ((i & size) == 0)) {
      sampled[i] = b.time, items[i] = b.item;
      sampled[j] = a.time, items[j] = a.item;
    }
  }
}

cudaError_t sort(const Scratch& s, int64_t n, cudaStream_t stream) {
  const dim3 segments = cuda::grid_of(n / kSegment, 1, 1), threads(kThreads);
  cudaError_t error = cuda::launch(sort_segment_kernel, segments, threads, stream, s.sampled,
                                   s.items, 2, kSegment, true, s.state);
  for (int64_t size = 2 * kSegment; size <= n && error == cudaSuccess; size *= 2) {
    for (int64_t stride = size / 2; stride >= kSegment && error == cudaSuccess; stride /= 2)
      error = cuda::launch(sort_step_kernel, blocks_of(n / 2), threads, stream, s.sampled, s.items,
                           n / 2, size, stride);
    if (error == cudaSuccess)
      error = cuda::launch(sort_segment_kernel, segments, threads, stream, s.sampled, s.items, size,
                           size, false, s.state);
  }
  return error;
}

__global__ void finish_kernel(const uint32_t* __restrict__ items, int64_t size,
                              int64_t* __restrict__ indices, int64_t* __restrict__ count,
                              const State* state) {
  const unsigned taken = state->taken;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (first == 0 && count) *count = taken;
#pragma unroll 1  // counting the turns beforehand takes a 64-bit division
  for (int64_t k = first; k < size; k += stride) indices[k] = k < taken ? items[k] : int64_t{-1};
}

}  // namespace

int64_t sort_size(int64_t most) {
  int64_t size = kSegment;
  while (size < most) size *= 2;
  return size;
}

template <typename T>
cudaError_t draw_cuda(const Input<T>& input, int64_t most, const Scratch& s, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(s.state, 0, sizeof(State), stream);
  if (error != cudaSuccess || input.n == 0) return error;
  const int64_t n = input.n;
  error = cuda::launch(time_kernel<T>, blocks_of(ceil_div(n, 4)), kThreads, stream, input, s.times,
                       s.state);
  for (int pass = 0; pass < kDigits && error == cudaSuccess; ++pass)
    error = cuda::launch(select_kernel, blocks_of(ceil_div(n, 8)), kThreads, stream, s.times, n,
                         pass, most, s.state);
  if (error == cudaSuccess)
    error = cuda::launch(collect_kernel, blocks_of(n), kThreads, stream, s.times, n, s.sampled,
                         s.items, s.state);
  return error == cudaSuccess && most > 0 ? sort(s, sort_size(most), stream) : error;
}

cudaError_t finish_cuda(const Scratch& s, int64_t size, int64_t* indices, int64_t* count,
                        cudaStream_t stream) {
  return cuda::launch(finish_kernel, blocks_of(size), kThreads, stream, s.items, size, indices,
                      count, s.state);
}

template cudaError_t draw_cuda(const Input<float>&, int64_t, const Scratch&, cudaStream_t);
template cudaError_t draw_cuda(const Input<double>&, int64_t, const Scratch&, cudaStream_t);

}  // namespace tinyops::sample_negatives
