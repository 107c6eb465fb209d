// The CPU kernels of sample_negatives: which items can be among the first to arrive, and when.
#pragma once
#include "../ops/sample_negatives.h"
#include "isa.h"

namespace tinyops::sample_negatives {

template <typename T>
struct Items {
  const T* scores;            // [K]
  const T* overlaps;          // [K]
  const uint8_t* candidates;  // [K] of 0 and 1
  Weights<T> weights;
  uint64_t seed;
};

struct Survivor {
  uint32_t item;
  uint32_t high;  // the upper half of its random bits
};

// The random bits v of an item are a lower bound of its time, and log2(v) is bounded by exponent
// and mantissa of v as float32, read as one integer: log2(1 + m) >= m. `bound_of` turns an arrival
// (its logarithm) into what that integer times kLogStep is compared with, less the logit.
constexpr double kLog2 = 0.69314718055994530942;
constexpr double kLogStep = kLog2 * 0x1p-23;
// Of the integer v is 2^31 times as large, and the exponent of float32 is larger by 127. The slack
// covers the roundings in float32 where the comparison is close: of numbers below 111, four.
TINYOPS_HD double bound_of(double arrival) {
  return arrival + (31 + 127) * kLog2 + 1e-4;
}

// Writes the candidates of [begin, end) that may arrive before `bound`, items rising; all of those
// that do are among them. Returns how many. `begin` is a multiple of kGroup. *bad becomes the first
// candidate whose score or overlap is not finite, if there is one and *bad is -1.
template <Isa isa, typename T>
int64_t scan(const Items<T>& items, int64_t begin, int64_t end, T bound, Survivor* survivors,
             int64_t* bad);

// times[k] = arrival() of survivors[k].
template <Isa isa, typename T>
void arrivals(const Items<T>& items, const Survivor* survivors, int64_t n, uint64_t* times);

}  // namespace tinyops::sample_negatives
