// The argument checks and the outputs of topk_per_target and topk_per_target_ties, besides what
// max_overlap has. tinyops/ops/topk_per_target.py says the same to the fake kernels.
#pragma once
#include "max_overlap_check.h"

namespace tinyops::topk_per_target {

inline constexpr char kName[] = "topk_per_target", kTiesName[] = "topk_per_target_ties";

// min_value: null without ties.
inline void check_arguments(const max_overlap::Inputs& in, int64_t k, const double* min_value) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  in.check_metadata();
  check(k >= 1 && k <= kMost, in.op, ": k must be in [1, 2^31), got ", k);
  check(!min_value || *min_value == *min_value, in.op, ": min_value must not be NaN, got nan");
}

// value [M, k], index [M, k], assigned [K], which is empty without ties.
struct Outputs {
  Tensor value, index, assigned;

  Outputs(const max_overlap::Inputs& in, int64_t k, bool ties)
      : value(empty_on(in.boxes, compute_dtype(in.boxes.scalar_type()), {in.targets.size(0), k})),
        index(empty_on(in.boxes, ScalarType::Long, {in.targets.size(0), k})),
        assigned(empty_on(in.boxes, ScalarType::Long, {ties ? in.boxes.size(0) : 0})) {}
};

}  // namespace tinyops::topk_per_target
