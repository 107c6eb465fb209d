#include <algorithm>
#include <memory>

// before the others: torch_util.h pins the ABI
#include "../ops/nms_check.h"
#include "boxes.h"
#include "greedy.h"
#include "greedy_glue.h"

namespace tinyops::nms {
namespace {

// Fills keep with at most `most` indices; returns how many.
int64_t run(const char* op, const Tensor& boxes, const Tensor& scores, double iou_threshold,
            const OptionalTensor& labels, const OptionalTensor& image_ids, int64_t metric,
            int64_t offset, bool check_values, int64_t* keep, int64_t most) {
  const int64_t n = boxes.size(0);
  if (n == 0) return 0;
  const Tensor b = to_compute(boxes), s = to_compute(scores);
  const OptionalTensor l = to_contiguous(labels), i = to_contiguous(image_ids);
  const auto order = std::make_unique_for_overwrite<int32_t[]>(n);
  for_compute_dtype(s.scalar_type(), [&](auto zero) {
    const auto* values = data<decltype(zero)>(s);
    if (check_values) check_no_nan_cpu(op, "scores", values, n);
    greedy::rank(values, n, order.get());
  });
  return for_compute_dtype(b.scalar_type(), [&](auto zero) {
    const auto* rows = data<Box<decltype(zero)>>(b);
    if (check_values) check_box_values_cpu(op, "boxes", rows, n);
    greedy::Problem<decltype(zero)> p{rows, order.get(), n, static_cast<greedy::Rule>(metric),
                                      iou_threshold};
    p.offset = static_cast<int>(offset);
    p.labels = data<int64_t>(l);
    p.image_ids = data<int64_t>(i);
    return greedy::suppress(p, keep, most, greedy::torch_threads());
  });
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold,
               const OptionalTensor& labels, const OptionalTensor& image_ids, int64_t metric,
               int64_t offset, bool check_values) {
  const int64_t n =
      check_nms("nms", boxes, scores, iou_threshold, labels, image_ids, metric, offset);
  const auto keep = std::make_unique_for_overwrite<int64_t[]>(n);
  const int64_t kept = run("nms", boxes, scores, iou_threshold, labels, image_ids, metric, offset,
                           check_values, keep.get(), n);
  const Tensor result = torch::stable::empty(std::array{kept}, ScalarType::Long);
  std::copy_n(keep.get(), kept, mutable_data<int64_t>(result));
  return result;
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                          double iou_threshold, int64_t max_outputs,
                                          const OptionalTensor& labels,
                                          const OptionalTensor& image_ids, int64_t metric,
                                          int64_t offset, bool check_values) {
  check_nms("nms", boxes, scores, iou_threshold, labels, image_ids, metric, offset);
  check_max_outputs("nms", max_outputs);
  const Tensor keep = torch::stable::empty(std::array{max_outputs}, ScalarType::Long);
  const Tensor count = torch::stable::empty(std::initializer_list<int64_t>{}, ScalarType::Long);
  auto* const out = mutable_data<int64_t>(keep);
  const int64_t kept = run("nms", boxes, scores, iou_threshold, labels, image_ids, metric, offset,
                           check_values, out, max_outputs);
  std::fill(out + kept, out + max_outputs, -1);
  *mutable_data<int64_t>(count) = kept;
  return {keep, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
  m.impl("nms_padded", TORCH_BOX(&nms_padded_cpu));
}

}  // namespace tinyops::nms
