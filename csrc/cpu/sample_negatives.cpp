#include "../ops/sample_negatives_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "../ops/sample_negatives_overlap.h"
#include "boxes.h"
#include "sample_negatives.h"

namespace tinyops::sample_negatives {
namespace {

constexpr char kName[] = "sample_negatives";
constexpr char kPadded[] = "sample_negatives_padded";
constexpr char kFromBoxes[] = "sample_negatives_from_boxes";

// Items below which another thread does not pay, and those scanned between two looks at the bound.
constexpr int64_t kGrain = 65536;
constexpr int64_t kStep = 1024;

struct Arrived {
  uint64_t time;  // arrival()
  uint32_t item;
  bool operator<(const Arrived& other) const {
    return time != other.time ? time < other.time : item < other.item;
  }
};

// The first `most` to arrive of all that were added, in no order.
class First {
 public:
  explicit First(int64_t most) : most_(static_cast<size_t>(most)) {}

  // No item that arrives later can be among them.
  uint64_t last_time() const { return last_time_; }

  void add(Arrived a) {
    if (a.time > last_time_ || most_ == 0) return;
    list_.push_back(a);
    if (list_.size() >= most_ + std::max<size_t>(most_ / 4, 64)) cut();
  }
  void add(const First& other) {
    for (const Arrived& a : other.list_) add(a);
  }
  void cut() {
    if (list_.size() < most_ || most_ == 0) return;
    const auto last = list_.begin() + static_cast<std::ptrdiff_t>(most_) - 1;
    std::nth_element(list_.begin(), last, list_.end());
    last_time_ = last->time;
    list_.resize(most_);
  }
  const std::vector<Arrived>& sorted() {
    cut();
    std::sort(list_.begin(), list_.end());
    return list_;
  }

 private:
  size_t most_;
  uint64_t last_time_ = ~uint64_t{0};
  std::vector<Arrived> list_;
};

// The float32 (or float64) that is not below x.
template <typename T>
T round_up(double x) {
  const T t = static_cast<T>(x);
  return t < x ? std::nextafter(t, std::numeric_limits<T>::infinity()) : t;
}

template <typename T>
void scan_range(const Items<T>& items, int64_t begin, int64_t end, First& first, int64_t* bad) {
  std::array<Survivor, kStep> survivors;
  std::array<uint64_t, kStep> times;
  for (; begin < end; begin += kStep) {
    const uint64_t last = first.last_time();
    const T bound = last == ~uint64_t{0} ? std::numeric_limits<T>::infinity()
                                         : round_up<T>(bound_of(from_ordered(last)));
    const int64_t found = for_isa(cpu_isa(), [&](auto isa) {
      const int64_t n =
          scan<isa.value>(items, begin, std::min(end, begin + kStep), bound, survivors.data(), bad);
      arrivals<isa.value>(items, survivors.data(), n, times.data());
      return n;
    });
    for (size_t k = 0; k < static_cast<size_t>(found); ++k)
      first.add({times[k], survivors[k].item});
  }
}

template <typename T>
[[noreturn]] void refuse(const char* op, const Items<T>& items, bool has_scores, int64_t bad) {
  const T score = items.scores[bad];
  if (has_scores && score - score != 0) refuse_value(op, "scores", score, bad);
  refuse_value(op, "overlaps", items.overlaps[bad], bad);
}

template <typename T>
First draw(const char* op, const Items<T>& items, int64_t n, int64_t num_samples, bool has_scores,
           bool check_values) {
  First all(num_samples);
  int64_t bad = -1;
  std::mutex mutex;
  torch::stable::parallel_for(0, ceil_div(n, kStep), kGrain / kStep, [&](int64_t b, int64_t e) {
    First own(num_samples);
    int64_t own_bad = -1;
    scan_range(items, b * kStep, std::min(n, e * kStep), own, &own_bad);
    own.cut();
    const std::lock_guard lock(mutex);
    all.add(own);
    if (own_bad >= 0) bad = bad < 0 ? own_bad : std::min(bad, own_bad);
  });
  if (check_values && bad >= 0) refuse(op, items, has_scores, bad);
  return all;
}

// The sample in the order of its drawing. No scores: they are 0.
First draw(const char* op, const OptionalTensor& scores, const Tensor& overlaps,
           const Tensor& candidates, const Tensor& seed, const Options& options,
           bool check_values) {
  const ScalarType dtype = common_dtype(scores ? *scores : overlaps, overlaps);
  const Tensor own_overlaps = to_dtype(overlaps, dtype);
  const Tensor own_scores = scores ? to_dtype(*scores, dtype) : own_overlaps;
  const Tensor own_candidates = to_contiguous(candidates);
  return for_compute_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    Weights<T> weights = options.weights<T>();
    if (!scores) weights.score = 0;  // times the overlaps, which are finite
    const Items<T> items{data<T>(own_scores), data<T>(own_overlaps), data<uint8_t>(own_candidates),
                         weights, static_cast<uint64_t>(*data<int64_t>(seed))};
    return draw(op, items, overlaps.size(0), options.num_samples, scores.has_value(), check_values);
  });
}

// The first `size` places of the result; those that the sample does not fill are -1.
Tensor indices(const std::vector<Arrived>& sample, int64_t size) {
  const Tensor result = torch::stable::empty(std::array{size}, ScalarType::Long);
  auto* out = mutable_data<int64_t>(result);
  const auto count = static_cast<int64_t>(sample.size());
  for (int64_t k = 0; k < count; ++k) out[k] = sample[static_cast<size_t>(k)].item;
  std::fill(out + count, out + size, int64_t{-1});
  return result;
}
Tensor indices(const std::vector<Arrived>& sample) {
  return indices(sample, static_cast<int64_t>(sample.size()));
}

Tensor sample_negatives_cpu(const Tensor& scores, const Tensor& overlaps, const Tensor& candidates,
                            int64_t num_samples, const Tensor& seed, double balance,
                            int64_t balance_on, double temperature, bool check_values) {
  const Options options{num_samples, balance, balance_on, temperature};
  check_arguments(kName, scores, overlaps, candidates, seed, options);
  return indices(draw(kName, scores, overlaps, candidates, seed, options, check_values).sorted());
}

std::tuple<Tensor, Tensor> sample_negatives_padded_cpu(const Tensor& scores, const Tensor& overlaps,
                                                       const Tensor& candidates,
                                                       int64_t num_samples, const Tensor& seed,
                                                       double balance, int64_t balance_on,
                                                       double temperature, bool check_values) {
  const Options options{num_samples, balance, balance_on, temperature};
  check_arguments(kPadded, scores, overlaps, candidates, seed, options);
  First first = draw(kPadded, scores, overlaps, candidates, seed, options, check_values);
  const std::vector<Arrived>& sample = first.sorted();
  const Tensor count = torch::stable::empty({}, ScalarType::Long);
  *mutable_data<int64_t>(count) = static_cast<int64_t>(sample.size());
  return {indices(sample, num_samples), count};
}

Tensor sample_negatives_from_boxes_cpu(const Tensor& boxes, const Tensor& targets,
                                       const OptionalTensor& scores, const Tensor& candidates,
                                       int64_t num_samples, const Tensor& seed, int64_t mode,
                                       double balance, int64_t balance_on, double temperature,
                                       bool check_values) {
  const Options options{num_samples, balance, balance_on, temperature};
  check_from_boxes(kFromBoxes, boxes, targets, scores, candidates, seed, mode, options);
  const Tensor own_boxes = to_compute(boxes), own_targets = to_compute(targets);
  if (check_values) {  // here, because the message of an error in an operator called is lost
    for_compute_dtype(own_boxes.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      check_box_values_cpu(kFromBoxes, "boxes", data<Box<T>>(own_boxes), boxes.size(0));
      check_box_values_cpu(kFromBoxes, "targets", data<Box<T>>(own_targets), targets.size(0));
    });
  }
  const Tensor overlaps = largest_overlaps("tinyops::max_overlap", own_boxes, own_targets, mode);
  return indices(
      draw(kFromBoxes, scores, overlaps, candidates, seed, options, check_values).sorted());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("sample_negatives", TORCH_BOX(&sample_negatives_cpu));
  m.impl("sample_negatives_padded", TORCH_BOX(&sample_negatives_padded_cpu));
  m.impl("sample_negatives_from_boxes", TORCH_BOX(&sample_negatives_from_boxes_cpu));
}

}  // namespace tinyops::sample_negatives
