// The argument checks of soft_nms, said once for every backend. tinyops/ops/soft_nms.py says the
// same to the fake kernel.
#pragma once
#include "boxes_check.h"
// after boxes_check.h, which pins the ABI
#include <limits>

#include "soft_nms.h"

namespace tinyops::soft_nms {

inline constexpr char kOp[] = "soft_nms";

inline Options check_arguments(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                               double sigma, double min_score, int64_t method,
                               const OptionalTensor& labels, const OptionalTensor& image_ids) {
  check_boxes(kOp, "boxes", boxes);
  check_scores(kOp, "scores", scores, "boxes", boxes);
  check_ids(kOp, "labels", labels, "boxes", boxes);
  check_ids(kOp, "image_ids", image_ids, "boxes", boxes);
  check_fraction(kOp, "iou_threshold", iou_threshold);
  constexpr double kLargest = std::numeric_limits<double>::max();
  check(sigma > 0 && sigma <= kLargest, kOp, ": sigma must be finite and above 0, got ", sigma);
  check(min_score >= 0 && min_score <= kLargest, kOp,
        ": min_score must be finite and at least 0, got ", min_score);
  check(method == 0 || method == 1, kOp, ": method must be 0 (linear) or 1 (gaussian), got ",
        method);
  return {iou_threshold, sigma, min_score, static_cast<Method>(method)};
}

}  // namespace tinyops::soft_nms
