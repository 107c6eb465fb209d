// Argument checks that every box operator shares: sizes, types and devices, not values.
// tinyops/ops/_boxes.py says the same to the fake kernels.
#pragma once
#include "../torch_util.h"
#include "boxes.h"

namespace tinyops {

// The kernels compute in float64 for float64 and in float32 for everything narrower.
inline ScalarType compute_dtype(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline Tensor to_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}
inline Tensor to_dtype(const Tensor& t, ScalarType dtype) {
  return to_contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}
inline Tensor to_compute(const Tensor& t) {
  return to_dtype(t, compute_dtype(t.scalar_type()));
}
inline OptionalTensor to_contiguous(const OptionalTensor& t) {
  return t ? OptionalTensor(to_contiguous(*t)) : std::nullopt;
}

// Calls f with a zero of the compute type.
template <typename F>
decltype(auto) for_compute_dtype(ScalarType t, F&& f) {
  if (t == ScalarType::Double) return f(double{});
  return f(float{});
}

// [K, 4] of a float type. Indices are 32-bit inside the kernels. Returns K.
inline int64_t check_boxes(const char* op, const char* name, const Tensor& boxes) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, op, ": ", name, " must be [K, 4], got ",
        shape_text(boxes));
  check(is_float_dtype(boxes.scalar_type()), op, ": ", name,
        " must be float32, float64, float16 or bfloat16, got ", dtype_text(boxes.scalar_type()));
  check(boxes.size(0) < (int64_t{1} << 31), op, ": ", name, " must have fewer than 2^31 rows, got ",
        boxes.size(0));
  return boxes.size(0);
}

// [M, 4], on the device and of the dtype of the boxes.
inline void check_targets(const char* op, const Tensor& targets, const Tensor& boxes) {
  check_boxes(op, "targets", targets);
  check(targets.device() == boxes.device(), op, ": targets must be on ", device_text(boxes),
        " like boxes, got ", device_text(targets));
  check(targets.scalar_type() == boxes.scalar_type(), op, ": targets must be ",
        dtype_text(boxes.scalar_type()), " like boxes, got ", dtype_text(targets.scalar_type()));
}

// One value per box, on the device of the boxes.
inline void check_per_box(const char* op, const char* name, const Tensor& x, const char* leader,
                          const Tensor& boxes) {
  check(x.dim() == 1 && x.size(0) == boxes.size(0), op, ": ", name, " must be [", boxes.size(0),
        "] like ", leader, ", got ", shape_text(x));
  check(x.device() == boxes.device(), op, ": ", name, " must be on ", device_text(boxes), " like ",
        leader, ", got ", device_text(x));
}
inline void check_scores(const char* op, const char* name, const Tensor& scores, const char* leader,
                         const Tensor& boxes) {
  check_per_box(op, name, scores, leader, boxes);
  check(is_float_dtype(scores.scalar_type()), op, ": ", name,
        " must be float32, float64, float16 or bfloat16, got ", dtype_text(scores.scalar_type()));
}
inline void check_ids(const char* op, const char* name, const Tensor& ids, const char* leader,
                      const Tensor& boxes) {
  check_per_box(op, name, ids, leader, boxes);
  check(ids.scalar_type() == ScalarType::Long, op, ": ", name, " must be int64, got ",
        dtype_text(ids.scalar_type()));
}
inline void check_ids(const char* op, const char* name, const OptionalTensor& ids,
                      const char* leader, const Tensor& boxes) {
  if (ids) check_ids(op, name, *ids, leader, boxes);
}

// Not `<` and `>`: NaN must fail.
inline void check_fraction(const char* op, const char* name, double x) {
  check(x >= 0 && x <= 1, op, ": ", name, " must be in [0, 1], got ", x);
}

inline void check_max_outputs(const char* op, int64_t max_outputs) {
  check(max_outputs >= 0, op, ": max_outputs must be at least 0, got ", max_outputs);
}

// ---- Values: what the kernels found, said in words ---------------------------------------------

// A NaN without its sign, which means nothing.
struct Number {
  double x;
  friend std::ostream& operator<<(std::ostream& s, Number number) {
    return number.x == number.x ? s << number.x : s << "nan";
  }
};

template <typename T>
[[noreturn]] void refuse_box(const char* op, const char* name, const Box<T>& b, int64_t index) {
  check(false, op, ": ", name, " must be finite with x1 <= x2 and y1 <= y2, got [", Number{b.x1},
        ", ", Number{b.y1}, ", ", Number{b.x2}, ", ", Number{b.y2}, "] at index ", index);
  __builtin_unreachable();
}
[[noreturn]] inline void refuse_nan(const char* op, const char* name, int64_t index) {
  check(false, op, ": ", name, " must not be NaN, got nan at index ", index);
  __builtin_unreachable();
}

}  // namespace tinyops
