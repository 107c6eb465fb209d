// What one item of sample_negatives is worth and where its random bits come from, shared by CPU and
// CUDA, so that both draw the same sample.
#pragma once
#include "exact_math.h"
#include "philox.h"

namespace tinyops::sample_negatives {

// logit = (score_weight * score + overlap_weight * overlap) * sharpness, in the compute type.
template <typename T>
struct Weights {
  T score, overlap, sharpness;
};

template <typename T>
TINYOPS_HD double logit(const Weights<T>& w, T score, T overlap) {
  return static_cast<double>((w.score * score + w.overlap * overlap) * w.sharpness);
}

// 64 items share 16 Philox blocks: item i has word i / 16 % 4 of block i / 64 * 16 + i % 16, so
// that neighbouring lanes of a CPU vector or of a warp hold neighbouring items. The counter is
// (block, stream, 0, 0); stream 0 gives the upper half of an item's 64 random bits, 1 the lower.
constexpr int kGroup = 64;
constexpr int kBlocksPerGroup = kGroup / 4;

TINYOPS_HD uint32_t block_of(uint32_t item) {
  return item / kGroup * kBlocksPerGroup + item % kBlocksPerGroup;
}
TINYOPS_HD uint32_t word_of(uint32_t item) {
  return item / kBlocksPerGroup % 4;
}
TINYOPS_HD uint32_t item_of(uint32_t block, uint32_t word) {
  return block / kBlocksPerGroup * kGroup + word * kBlocksPerGroup + block % kBlocksPerGroup;
}
TINYOPS_HD philox::Block random_block(uint64_t seed, uint32_t block, uint32_t stream) {
  return philox::block(seed, block, stream, 0, 0);
}

// Integers in the order of the float64 values they stand for; any NaN is excluded.
TINYOPS_HD uint64_t to_ordered(double x) {
  const uint64_t u = exact::bits_of(x);
  return u >> 63 ? ~u : u | uint64_t{1} << 63;
}
TINYOPS_HD double from_ordered(uint64_t u) {
  return exact::double_of(u >> 63 ? u ^ uint64_t{1} << 63 : ~u);
}

// The logarithm of the time at which an item of rate exp(logit) comes up for the first time: items
// sorted by it are a draw without replacement (Efraimidis and Spirakis, IPL 97, 2006). The
// logarithm, because rates of any logit fit into it. A logit that is NaN counts as -inf: drawn
// last.
TINYOPS_HD uint64_t arrival(uint32_t high, uint32_t low, double logit) {
  const double log_time = exact::log(exact::exponential(uint64_t{high} << 32 | low));
  return to_ordered(logit == logit ? log_time - logit : exact::double_of(exact::kInfinity));
}

}  // namespace tinyops::sample_negatives
