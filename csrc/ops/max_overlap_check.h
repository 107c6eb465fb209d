// The argument checks of max_overlap and of topk_per_target, said once for every backend. The
// messages are those of `check_arguments` in tinyops/ops/max_overlap.py, which guards fake tensors.
#pragma once
#include "boxes_check.h"
// after boxes_check.h, which pins the ABI
#include "max_overlap.h"

namespace tinyops::max_overlap {

// What the operators have in common.
struct Inputs {
  const char* op;
  int64_t mode;
  Tensor boxes, targets;
  OptionalTensor target_mask, image_ids, target_image_ids;

  void check_metadata() const {
    check_boxes(op, "boxes", boxes);
    check_targets(op, targets, boxes);
    check(mode >= 0 && mode < kModes, op, ": mode must be in [0, ", kModes, "), got ", mode);
    if (target_mask) {
      check_per_box(op, "target_mask", *target_mask, "targets", targets);
      check(target_mask->scalar_type() == ScalarType::Bool, op, ": target_mask must be bool, got ",
            dtype_text(target_mask->scalar_type()));
    }
    check(image_ids.has_value() == target_image_ids.has_value(), op,
          ": image_ids and target_image_ids must come together, got ",
          image_ids ? "image_ids" : "target_image_ids", " alone");
    check_ids(op, "image_ids", image_ids, "boxes", boxes);
    check_ids(op, "target_image_ids", target_image_ids, "targets", targets);
  }

  // After check_metadata: all contiguous, boxes and targets of a compute type.
  Inputs dense() const {
    return {op,
            mode,
            to_compute(boxes),
            to_compute(targets),
            to_contiguous(target_mask),
            to_contiguous(image_ids),
            to_contiguous(target_image_ids)};
  }

  // Of dense tensors.
  template <typename T>
  Problem<T> problem() const {
    return {static_cast<Mode>(mode),  boxes.size(0),
            targets.size(0),          data<Box<T>>(boxes),
            data<Box<T>>(targets),    data<bool>(target_mask),
            data<int64_t>(image_ids), data<int64_t>(target_image_ids)};
  }
};

}  // namespace tinyops::max_overlap
