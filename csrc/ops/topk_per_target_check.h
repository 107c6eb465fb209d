// The argument checks of topk_per_target and topk_per_target_ties, besides those of max_overlap.
// tinyops/ops/topk_per_target.py says the same to the fake kernels.
#pragma once
#include "max_overlap_check.h"

namespace tinyops::topk_per_target {

inline void check_k(const char* op, int64_t k) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  check(k >= 1 && k <= kMost, op, ": k must be in [1, 2^31), got ", k);
}
inline void check_min_value(const char* op, double min_value) {
  check(min_value == min_value, op, ": min_value must not be NaN, got ", min_value);
}

}  // namespace tinyops::topk_per_target
