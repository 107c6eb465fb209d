// The argument checks of balanced_l1_sums, said once for every backend. The messages are those of
// tinyops/ops/balanced_l1.py, which guards fake tensors and Triton.
#pragma once
#include "boxes_check.h"
#include "maps_check.h"
#include "valid_check.h"
// after the others, which pin the ABI
#include <tuple>

#include "balanced_l1.h"

namespace tinyops::balanced_l1 {

inline constexpr char kOp[] = "balanced_l1_sums", kName[] = "balanced_l1_sums: ";

// Checks the tensors of the forward and gives the sizes of the problem in the layout of prediction.
inline Problem check_forward(const Tensor& prediction, const Tensor& target, const Tensor& boxes,
                             const Tensor& image_ids, const OptionalTensor& valid, double scale) {
  check_map(kOp, "prediction", prediction);
  check_map_like(kOp, "target", target, "prediction", prediction);
  const int64_t n = prediction.size(0), c = prediction.size(1);
  const int64_t h = prediction.size(2), w = prediction.size(3);
  check_map_size(kOp, "target", target, {n, c, h, w});
  for (const int64_t size : {h, w})
    check(size < (int64_t{1} << 31), kName, "height and width must be below 2^31, got ", size);
  const int64_t count = check_boxes(kOp, "boxes", boxes);
  check(boxes.device() == prediction.device(), kName, "boxes must be on ", device_text(prediction),
        " like prediction, got ", device_text(boxes));
  check_ids(kOp, "image_ids", image_ids, "boxes", boxes);
  check_valid(kOp, valid, "prediction", prediction, n);
  check(scale > 0 && scale < HUGE_VAL, kName, "scale must be finite and above 0, got ",
        Number{scale});
  return {n,
          c,
          static_cast<int32_t>(h),
          static_cast<int32_t>(w),
          layout_of(prediction) == MemoryFormat::ChannelsLast,
          static_cast<int32_t>(count),
          scale};
}

inline void check_sum_gradient(const char* name, const Tensor& d, const Tensor& prediction) {
  check(d.dim() == 0, kName, name, " must have no dimensions, got ", shape_text(d));
  check(d.device() == prediction.device(), kName, name, " must be on ", device_text(prediction),
        " like prediction, got ", device_text(d));
  const ScalarType dtype = compute_dtype(prediction.scalar_type());
  check(d.scalar_type() == dtype, kName, name, " must be ", dtype_text(dtype), ", got ",
        dtype_text(d.scalar_type()));
}

inline MemoryFormat format_of(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Owns the dense inputs of one call of either operator.
struct Inputs {
  Tensor prediction, target, boxes, image_ids;
  OptionalTensor valid;

  Inputs(const Problem& p, const Tensor& prediction_in, const Tensor& target_in,
         const Tensor& boxes_in, const Tensor& image_ids_in, const OptionalTensor& valid_in)
      : prediction(to_layout(prediction_in, format_of(p))),
        target(to_layout(target_in, format_of(p))),
        boxes(to_compute(boxes_in)),
        image_ids(to_contiguous(image_ids_in)),
        valid(to_contiguous(valid_in)) {}
};

// The fresh outputs of the forward: two sums and a count, without dimensions.
struct Sums {
  Tensor total, positive, cells;

  explicit Sums(const Tensor& like)
      : total(empty_on(like, compute_dtype(like.scalar_type()), {})),
        positive(empty_on(like, compute_dtype(like.scalar_type()), {})),
        cells(empty_on(like, ScalarType::Long, {})) {}
  std::tuple<Tensor, Tensor, Tensor> outputs() const { return {total, positive, cells}; }
};

// The fresh outputs of the backward. One that nobody asks for is empty.
struct Gradients {
  Tensor prediction, target;

  Gradients(const Problem& p, const Tensor& like, bool need_prediction, bool need_target)
      : prediction(one(p, like, need_prediction)), target(one(p, like, need_target)) {}
  std::tuple<Tensor, Tensor> outputs() const { return {prediction, target}; }

 private:
  static Tensor one(const Problem& p, const Tensor& like, bool need) {
    if (!need) return empty_like_sized(like, {0});
    return empty_like_sized(like, {p.images, p.channels, p.height, p.width}, format_of(p));
  }
};

}  // namespace tinyops::balanced_l1
