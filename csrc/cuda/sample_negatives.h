// Launchers of sample_negatives on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/sample_negatives.h"

namespace tinyops::sample_negatives {

template <typename T>
struct Input {
  const T* scores;            // [n]
  const T* overlaps;          // [n]
  const uint8_t* candidates;  // [n] of 0 and 1
  int32_t n;
  Weights<T> weights;
  const int64_t* seed;  // on the device, or null:
  int64_t seed_value;
};

// Zeroed before the first launch.
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
struct State {
  unsigned long long bad;   // 0, or the complement of twice the first bad item (+ 1: its overlap)
  unsigned long long time;  // the last item of the sample, as far as it is known:
  unsigned item;            // those that are not behind (time, item) belong to the sample
  unsigned candidates;
  unsigned rank;     // of the last item of the sample among those that share its known digits
  unsigned decided;  // everything is known
  unsigned ticket;   // blocks that have finished
  unsigned taken;    // size of the sample
  unsigned histogram[kBins];
};

struct Scratch {
  unsigned long long* times;    // [n]
  unsigned long long* sampled;  // [sort_size(most)] times of the sample
  uint32_t* items;              // [sort_size(most)]
  State* state;
};

// Elements that the sort of a sample of at most `most` items works on, a power of two.
int64_t sort_size(int64_t most);

// Leaves the sample of `most` (at most n) items in scratch.items, in the order of its drawing, and
// its size in state->taken.
template <typename T>
cudaError_t draw_cuda(const Input<T>& input, int64_t most, const Scratch& scratch,
                      cudaStream_t stream);

// The first `size` indices, -1 where the sample has ended, and its size unless `count` is null.
cudaError_t finish_cuda(const Scratch& scratch, int64_t size, int64_t* indices, int64_t* count,
                        cudaStream_t stream);

}  // namespace tinyops::sample_negatives
