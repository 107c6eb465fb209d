// The argument checks of sample_negatives and its forms, said once for every backend.
// tinyops/ops/sample_negatives.py says the same to the fake kernels.
#pragma once
#include "boxes_check.h"
// after boxes_check.h, which pins the ABI
#include "sample_negatives.h"

namespace tinyops::sample_negatives {

struct Options {
  int64_t num_samples;
  double balance;
  int64_t balance_on;  // what `balance` multiplies: 0 the score ("confidence"), 1 the overlap
  double temperature;

  template <typename T>
  Weights<T> weights() const {
    const T given = static_cast<T>(balance), rest = static_cast<T>(1 - balance);
    const T sharpness = static_cast<T>(1 / temperature);
    return balance_on == 0 ? Weights<T>{given, rest, sharpness}
                           : Weights<T>{rest, given, sharpness};
  }
};

inline void check_options(const char* op, const Options& o) {
  check(o.num_samples >= 0, op, ": num_samples must be at least 0, got ", o.num_samples);
  check_fraction(op, "balance", o.balance);
  check(o.balance_on == 0 || o.balance_on == 1, op, ": balance_on must be 0 or 1, got ",
        o.balance_on);
  // The inverse must be a normal float32 number.
  check(o.temperature >= 1e-30 && o.temperature <= 1e30, op,
        ": temperature must be positive, from 1e-30 to 1e30, got ", o.temperature);
}

// `leader` is the tensor whose rows are the items.
inline void check_candidates(const char* op, const Tensor& candidates, const char* leader_name,
                             const Tensor& leader) {
  check_per_box(op, "candidates", candidates, leader_name, leader);
  check(candidates.scalar_type() == ScalarType::Bool, op, ": candidates must be bool, got ",
        dtype_text(candidates.scalar_type()));
}

inline void check_seed(const char* op, const Tensor& seed, const char* leader_name,
                       const Tensor& leader) {
  check(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op,
        ": seed must be int64 with 1 element, got ", dtype_text(seed.scalar_type()), " ",
        shape_text(seed));
  check(seed.is_cpu() || seed.device() == leader.device(), op, ": seed must be on cpu or on ",
        device_text(leader), " like ", leader_name, ", got ", device_text(seed));
}

// Returns K.
inline int64_t check_arguments(const char* op, const Tensor& scores, const Tensor& overlaps,
                               const Tensor& candidates, const Tensor& seed, const Options& o) {
  check(scores.dim() == 1, op, ": scores must be [K], got ", shape_text(scores));
  check_scores(op, "scores", scores, "scores", scores);
  check(scores.size(0) < (int64_t{1} << 31), op,
        ": scores must have fewer than 2^31 elements, got ", scores.size(0));
  check_scores(op, "overlaps", overlaps, "scores", scores);
  check_candidates(op, candidates, "scores", scores);
  check_seed(op, seed, "scores", scores);
  check_options(op, o);
  return scores.size(0);
}

inline int64_t check_from_boxes(const char* op, const Tensor& boxes, const Tensor& targets,
                                const OptionalTensor& scores, const Tensor& candidates,
                                const Tensor& seed, int64_t mode, const Options& o) {
  const int64_t k = check_boxes(op, "boxes", boxes);
  check_targets(op, targets, boxes);
  if (scores) check_scores(op, "scores", *scores, "boxes", boxes);
  check_candidates(op, candidates, "boxes", boxes);
  check_seed(op, seed, "boxes", boxes);
  check(mode == 1 || mode == 2, op, ": mode must be 1 or 2, got ", mode);
  check_options(op, o);
  return k;
}

// Scores and overlaps may differ in dtype: float64 if one of them is, otherwise float32.
inline ScalarType common_dtype(const Tensor& a, const Tensor& b) {
  const bool wide = a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

[[noreturn]] inline void refuse_value(const char* op, const char* name, double value,
                                      int64_t index) {
  check(false, op, ": ", name, " of candidates must be finite, got ", value, " at index ", index);
  __builtin_unreachable();
}

}  // namespace tinyops::sample_negatives
