// Argument checks of the operators that suppress overlapping boxes; tinyops/ops/nms.py repeats
// those of metadata for the fake kernels.
#pragma once
#include "boxes_check.h"

namespace tinyops {

// labels and image_ids: int64 [K] or nothing. metric: 0 IoU, 1 intersection over the smaller area.
// Returns K.
inline int64_t check_nms(const char* op, const Tensor& boxes, const Tensor& scores,
                         double iou_threshold, const OptionalTensor& labels,
                         const OptionalTensor& image_ids, int64_t metric, int64_t offset) {
  const int64_t n = check_boxes(op, "boxes", boxes);
  check_scores(op, "scores", scores, "boxes", boxes);
  check_fraction(op, "iou_threshold", iou_threshold);
  check_ids(op, "labels", labels, "boxes", boxes);
  check_ids(op, "image_ids", image_ids, "boxes", boxes);
  check(metric == 0 || metric == 1, op, ": metric must be 0 (iou) or 1 (ios), got ", metric);
  check(offset == 0 || offset == 1, op, ": offset must be 0 or 1, got ", offset);
  return n;
}

}  // namespace tinyops
