#include "nms.h"

#include "../ops/soft_nms_check.h"
#include "boxes_glue.h"
#include "soft_nms.h"

namespace tinyops::soft_nms {
namespace {

constexpr int kMostRounds = 64;  // between two looks at what is left

int read_total(const Selection& selection, int n, cudaStream_t stream) {
  int32_t total = 0;
  check_cuda(
      cudaMemcpyAsync(&total, selection.total(n), sizeof(total), cudaMemcpyDeviceToHost, stream),
      kOp);
  check_cuda(cudaStreamSynchronize(stream), kOp);
  return total;
}

// How long the rounds take depends on the data, so the host asks after 4, 8, 16, ... of them; a
// round in which nothing is left costs two empty launches.
template <typename S, typename T>
void run_rounds(State<S>& state, const Grid<T>& grid, const Ids& ids, int n, const Options& o,
                cudaStream_t stream) {
  int left = n;
  for (int rounds = 4;; rounds = std::min(2 * rounds, kMostRounds)) {
    check_cuda(drop_gone_cuda(state, left, stream), kOp);
    left = read_total(state.selection, left, stream);
    if (left == 0) return;
    for (int round = 0; round < std::min(rounds, left); ++round)
      check_cuda(round_cuda(state, grid, ids, left, o, stream), kOp);
  }
}

std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& boxes, const Tensor& scores,
                                         double iou_threshold, double sigma, double min_score,
                                         int64_t method, const OptionalTensor& labels,
                                         const OptionalTensor& image_ids, bool check_values) {
  const Options o =
      check_arguments(boxes, scores, iou_threshold, sigma, min_score, method, labels, image_ids);
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const int n = static_cast<int>(boxes.size(0));
  const Tensor b = to_compute(boxes), s = to_compute(scores);
  const OptionalTensor l = to_contiguous(labels), i = to_contiguous(image_ids);
  if (n == 0)
    return {empty_on(boxes, ScalarType::Long, {0}), empty_on(boxes, s.scalar_type(), {0})};
  if (check_values) {
    ValueChecks checks(kOp, stream);
    checks.boxes("boxes", b);
    checks.no_nan("scores", s);
    checks.ask();
  }
  const Ids ids{data<int64_t>(l), data<int64_t>(i)};
  const size_t rank_bytes = rank_scratch(kOp, s, stream);
  size_t sort_bytes = 0;
  check_cuda(grid_sort_scratch(n, sort_bytes), kOp);
  return for_compute_dtype(s.scalar_type(), [&](auto score_zero) {
    using S = decltype(score_zero);
    return for_compute_dtype(b.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const auto take = [&](Arena& arena) {
        int32_t* const order = arena.take<int32_t>(n);
        void* const rank_scratch = arena.take<char>(static_cast<int64_t>(rank_bytes));
        const State<S> state(arena, n);
        return std::tuple(order, rank_scratch, state, GridMemory<T>(arena, n, sort_bytes));
      };
      Arena measure;
      take(measure);
      const Tensor scratch = scratch_on(boxes, measure.used());
      Arena arena(mutable_data<char>(scratch));
      auto [order, rank_scratch, state, memory] = take(arena);

      Grid<T> grid;
      check_cuda(build_grid(memory, data<Box<T>>(b), nullptr, ids, n, T(0), grid, stream), kOp);
      check_cuda(start_cuda(state, data<S>(s), n, o, stream), kOp);
      run_rounds(state, grid, ids, n, o, stream);

      // What is kept has final scores of 0 and above, and comes first.
      size_t bytes = rank_bytes;
      check_cuda(rank_scores(rank_scratch, bytes, state.final_scores, n, order, stream), kOp);
      check_cuda(count_marked(state.selection, state.kept, n, n, nullptr, stream), kOp);
      const int kept = read_total(state.selection, n, stream);
      const Tensor keep = empty_on(boxes, ScalarType::Long, {kept});
      const Tensor final_scores = empty_on(boxes, s.scalar_type(), {kept});
      check_cuda(gather_cuda(state, order, kept, mutable_data<int64_t>(keep),
                             mutable_data<S>(final_scores), stream),
                 kOp);
      return std::tuple(keep, final_scores);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cuda));
}

}  // namespace tinyops::soft_nms
