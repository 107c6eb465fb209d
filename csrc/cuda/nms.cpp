#include "nms.h"

#include "../ops/nms_check.h"
#include "boxes_glue.h"

namespace tinyops {
namespace {

struct Arguments {
  const Tensor &boxes, &scores;
  double iou_threshold;
  const OptionalTensor &labels, &image_ids;
  int64_t metric, offset;
  bool check_values;
};

// Decides which of n > 0 boxes are kept and calls finish(memory, order) while its scratch lives.
template <typename Finish>
void suppress(const char* op, const Arguments& a, cudaStream_t stream, Finish&& finish) {
  const Tensor boxes = to_compute(a.boxes), scores = to_compute(a.scores);
  const OptionalTensor labels = to_contiguous(a.labels), image_ids = to_contiguous(a.image_ids);
  if (a.check_values) {
    ValueChecks checks(op, stream);
    checks.boxes("boxes", boxes);
    checks.no_nan("scores", scores);
    checks.ask();
  }
  const int n = static_cast<int>(boxes.size(0));
  const size_t rank_bytes = rank_scratch(op, scores, stream);
  size_t sort_bytes = 0;
  check_cuda(grid_sort_scratch(n, sort_bytes), op);
  for_compute_dtype(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto take = [&](Arena& arena) {
      int32_t* const order = arena.take<int32_t>(n);
      void* const rank_scratch = arena.take<char>(static_cast<int64_t>(rank_bytes));
      return std::tuple(order, rank_scratch, greedy::Memory<T>(arena, n, sort_bytes));
    };
    Arena measure;
    take(measure);
    const Tensor scratch = scratch_on(boxes, measure.used());
    Arena arena(mutable_data<char>(scratch));
    const auto [order, rank_scratch, memory] = take(arena);
    rank(op, scores, rank_scratch, rank_bytes, order, stream);
    const greedy::Problem<T> problem{data<Box<T>>(boxes),
                                     order,
                                     n,
                                     {data<int64_t>(labels), data<int64_t>(image_ids)},
                                     greedy::threshold_of<T>(a.iou_threshold),
                                     T(0),
                                     static_cast<T>(a.offset)};
    check_cuda(a.metric == 0 ? greedy::suppress<greedy::Rule::kIou>(memory, problem, stream)
                             : greedy::suppress<greedy::Rule::kIos>(memory, problem, stream),
               op);
    finish(memory, order);
  });
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                const OptionalTensor& labels, const OptionalTensor& image_ids, int64_t metric,
                int64_t offset, bool check_values) {
  constexpr char kOp[] = "nms";
  const int64_t n = check_nms(kOp, boxes, scores, iou_threshold, labels, image_ids, metric, offset);
  const DeviceGuard guard(boxes);
  if (n == 0) return empty_on(boxes, ScalarType::Long, {0});
  const cudaStream_t stream = current_stream(boxes);
  std::optional<Tensor> keep;
  suppress(kOp, {boxes, scores, iou_threshold, labels, image_ids, metric, offset, check_values},
           stream, [&](const auto& memory, const int32_t* order) {
             keep = kept_exactly(kOp, memory, order, static_cast<int>(n), boxes, stream);
           });
  return *keep;
}

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores,
                                           double iou_threshold, int64_t max_outputs,
                                           const OptionalTensor& labels,
                                           const OptionalTensor& image_ids, int64_t metric,
                                           int64_t offset, bool check_values) {
  constexpr char kOp[] = "nms";
  const int64_t n = check_nms(kOp, boxes, scores, iou_threshold, labels, image_ids, metric, offset);
  check_max_outputs(kOp, max_outputs);
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const Padded padded(kOp, boxes, max_outputs, stream);
  if (n > 0)
    suppress(kOp, {boxes, scores, iou_threshold, labels, image_ids, metric, offset, check_values},
             stream, [&](const auto& memory, const int32_t* order) {
               padded.fill(kOp, memory, order, static_cast<int>(n), stream);
             });
  return padded.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
  m.impl("nms_padded", TORCH_BOX(&nms_padded_cuda));
}

}  // namespace tinyops
