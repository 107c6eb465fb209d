// Soft-NMS on the CPU, exact and sequential: the order in which boxes are kept is the result.
//
// Boxes come from the ranked list, or from a heap of those that have lost score since. Both hold
// upper bounds: a box that lost score after it was queued is queued again with what it has left.
// The neighbours of a kept box come from a grid, which boxes leave when they are kept or dropped.
#include <numeric>
#include <queue>

// before the others: torch_util.h pins the ABI
#include "../ops/soft_nms_check.h"
#include "box_grid.h"
#include "boxes.h"
#include "greedy.h"

namespace tinyops::soft_nms {
namespace {

template <typename S>
struct Candidate {
  S score;
  int32_t index;
  bool operator<(const Candidate& other) const {  // for std::priority_queue: the best is on top
    return score < other.score || (score == other.score && index > other.index);
  }
};

// The boxes still in the game, best first.
template <typename S>
class Queue {
 public:
  Queue(const std::vector<S>& scores, const std::vector<int32_t>& ranked)
      : scores_(scores), ranked_(ranked) {}

  // The best one left, -1 if there is none. Scores below 0: kept or dropped.
  int32_t pop() {
    for (;;) {
      const bool from_list = next_ < ranked_.size() && (heap_.empty() || heap_.top() < listed());
      if (!from_list && heap_.empty()) return -1;
      const Candidate<S> best = from_list ? listed() : heap_.top();
      from_list ? void(++next_) : heap_.pop();
      const S now = scores_[best.index];
      if (now == best.score) return best.index;
      if (now >= S(0)) heap_.push({now, best.index});
    }
  }

 private:
  Candidate<S> listed() const { return {first_[next_], ranked_[next_]}; }

  const std::vector<S>& scores_;
  const std::vector<int32_t>& ranked_;
  const std::vector<S> first_ = [this] {  // as ranked
    std::vector<S> first(ranked_.size());
    for (size_t k = 0; k < first.size(); ++k) first[k] = scores_[ranked_[k]];
    return first;
  }();
  size_t next_ = 0;
  std::priority_queue<Candidate<S>> heap_;
};

// Boxes without an area, or with one beyond the type, overlap nothing: their IoU is 0 or NaN.
template <typename T>
bool can_overlap(const Box<T>& b) {
  return area(b) > T(0) && area(b) <= std::numeric_limits<T>::max();
}

template <typename S>
struct Result {
  std::vector<int64_t> keep;
  std::vector<S> scores;
};

template <typename S, typename T>
Result<S> run(const Options& o, const Box<T>* boxes, const S* given, int64_t n,
              const int64_t* labels, const int64_t* image_ids) {
  constexpr S kGone = -1;
  std::vector<S> scores(n);
  std::vector<int32_t> ranked, overlapping;
  for (int64_t k = 0; k < n; ++k) {
    scores[k] = is_alive(given[k], o) ? given[k] + S(0) : kGone;  // -0.0 becomes 0.0
    if (scores[k] < S(0)) continue;
    ranked.push_back(static_cast<int32_t>(k));
    if (can_overlap(boxes[k])) overlapping.push_back(static_cast<int32_t>(k));
  }
  std::vector<S> alive(ranked.size());
  for (size_t k = 0; k < alive.size(); ++k) alive[k] = scores[ranked[k]];
  std::vector<int32_t> order(alive.size());
  greedy::rank(alive.data(), static_cast<int64_t>(alive.size()), order.data());
  for (int32_t& k : order) k = ranked[k];

  const std::vector<int32_t> groups = groups_of(n, labels, image_ids).of;
  BoxGrid<T> grid(boxes, overlapping, groups.data());
  Queue<S> queue(scores, order);
  Result<S> result;
  const bool linear = o.method == Method::kLinear;
  for (int32_t best = queue.pop(); best >= 0; best = queue.pop()) {
    result.keep.push_back(best);
    result.scores.push_back(scores[best]);
    scores[best] = kGone;
    const Box<T>& box = boxes[best];
    if (!can_overlap(box)) continue;
    // IoU > t needs widths and heights whose ratio is between t and 1 / t, up to rounding.
    const double size = larger(box.x2 - box.x1, box.y2 - box.y1);
    const double ratio = linear ? 0.999 * o.iou_threshold : 0;
    grid.near(box, groups[best], size * ratio, size / ratio, [&](int32_t other) {
      S& score = scores[other];
      if (score < S(0)) return false;
      const T overlap = iou(box, boxes[other]);
      if (!decays(overlap, o)) return true;
      score = decayed(score, factor<S>(overlap, o));
      if (!is_alive(score, o)) score = kGone;
      return score >= S(0);
    });
  }
  return result;
}

std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                        double iou_threshold, double sigma, double min_score,
                                        int64_t method, const OptionalTensor& labels,
                                        const OptionalTensor& image_ids, bool check_values) {
  const Options o =
      check_arguments(boxes, scores, iou_threshold, sigma, min_score, method, labels, image_ids);
  const int64_t n = boxes.size(0);
  const Tensor b = to_compute(boxes), s = to_compute(scores);
  const OptionalTensor l = to_contiguous(labels), i = to_contiguous(image_ids);
  return for_compute_dtype(s.scalar_type(), [&](auto score_zero) {
    using S = decltype(score_zero);
    const Result<S> result = for_compute_dtype(b.scalar_type(), [&](auto zero) {
      const auto* rows = data<Box<decltype(zero)>>(b);
      if (check_values) {
        check_box_values_cpu(kOp, "boxes", rows, n);
        check_no_nan_cpu(kOp, "scores", data<S>(s), n);
      }
      return run(o, rows, data<S>(s), n, data<int64_t>(l), data<int64_t>(i));
    });
    const auto kept = static_cast<int64_t>(result.keep.size());
    const Tensor keep = torch::stable::empty(std::array{kept}, ScalarType::Long);
    const Tensor final_scores = torch::stable::empty(std::array{kept}, s.scalar_type());
    std::copy(result.keep.begin(), result.keep.end(), mutable_data<int64_t>(keep));
    std::copy(result.scores.begin(), result.scores.end(), mutable_data<S>(final_scores));
    return std::tuple(keep, final_scores);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cpu));
}

}  // namespace tinyops::soft_nms
