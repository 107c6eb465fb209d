#include "greedy.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "greedy_kernels.h"
#include "greedy_layout.h"
#include "groups.h"

namespace tinyops::greedy {
namespace {

// Cells are this many times as large as a typical box: larger ones hold more boxes to compare,
// smaller ones have kept boxes entered in more of them.
constexpr double kCellBoxes = 4;
// In a crowd cells become smaller: where the last boxes were compared with more buckets than this.
constexpr int64_t kCrowded = 6;
constexpr int kMostRefinements = 4;
// Up to so many boxes need no grid.
constexpr int64_t kOneCell = 64;
// From such a threshold downwards, size ratios say little.
constexpr double kAroundThreshold = 0.01;

constexpr int64_t kMostBuckets = int64_t{1} << 28;  // they share 32 bits with a count to 8

template <typename T>
T round_down(double x) {
  const T y = static_cast<T>(x);
  return static_cast<double>(y) > x ? std::nextafter(y, std::numeric_limits<T>::lowest()) : y;
}

// The memory of the buckets, which grows as they are used up.
template <typename T>
class Buckets {
 public:
  void grow(Run<T>& run, int64_t capacity) {
    capacity = std::min(capacity, kMostBuckets);
    if (capacity <= run.capacity) throw std::runtime_error("tinyops: nms: too many boxes");
    auto buckets = std::make_unique_for_overwrite<Bucket<T>[]>(capacity);
    auto next = std::make_unique_for_overwrite<uint32_t[]>(2 * capacity);
    std::copy_n(buckets_.get(), run.used, buckets.get());
    std::copy_n(next_.get(), run.used, next.get());
    std::copy_n(run.next_in_table, run.used, next.get() + capacity);
    auto owner = std::make_unique_for_overwrite<uint8_t[]>(capacity);
    std::copy_n(owner_.get(), run.used, owner.get());
    owner_ = std::move(owner);
    run.owner = owner_.get();
    if (run.rule == Rule::kStitch) {
      auto tiles = std::make_unique<BucketTiles[]>(capacity);
      std::copy_n(tiles_.get(), run.used, tiles.get());
      tiles_ = std::move(tiles);
    }
    buckets_ = std::move(buckets);
    next_ = std::move(next);
    run.buckets = buckets_.get();
    run.bucket_tiles = tiles_.get();
    run.next = next_.get();
    run.next_in_table = next_.get() + capacity;
    run.capacity = static_cast<uint32_t>(capacity);
  }

 private:
  std::unique_ptr<Bucket<T>[]> buckets_;
  std::unique_ptr<BucketTiles[]> tiles_;
  std::unique_ptr<uint32_t[]> next_;
  std::unique_ptr<uint8_t[]> owner_;
};

// A run with all its memory.
template <typename T>
class Group {
 public:
  // Boxes of one label in one image: order[0..n), best first.
  Group(const Problem<T>& p, const int32_t* order, int64_t n, int64_t* keep, int64_t most) {
    run.boxes = p.boxes;
    run.order = order;
    run.n = n;
    run.rule = p.rule;
    run.threshold = round_down<T>(p.iou_threshold);
    run.ios_threshold = round_down<T>(p.ios_threshold);
    run.around = p.rule == Rule::kIos || p.iou_threshold < kAroundThreshold;
    run.legacy = p.offset != 0;
    run.tiles = p.tiles;
    run.truncated = p.truncated;
    run.keep = keep;
    run.most = most;
    if (n > kOneCell) std::tie(x_, y_) = survey(run, n == p.n ? nullptr : order);
    // The bounds on sizes and distances are those of exact arithmetic, which areas must be close
    // to.
    constexpr T kLeastArea = sizeof(T) == 8 ? T(0x1p-900) : T(0x1p-80);
    run.around |= n > kOneCell && !(x_.size * y_.size >= kLeastArea);
    allocate(n / 2 + 64);
  }
  // The same grid, empty.
  Group(const Group& like, int64_t* keep)
      : run(like.run), x_(like.x_), y_(like.y_), cell_boxes_(like.cell_boxes_) {
    run.keep = keep;
    allocate(64);
  }

  void grow() { buckets_.grow(run, 2 * int64_t{run.capacity}); }

  // Sets where to pause next. Call it at a pause: true if cells should be finer from there on.
  bool wants_refinement() {
    const int64_t decided = run.position - last_position_;
    const bool crowded = run.compared - last_compared_ > kCrowded * decided;
    last_position_ = run.position;
    last_compared_ = run.compared;
    run.pause = std::min(run.n, run.position + std::max<int64_t>(4096, run.n / 16));
    return crowded && decided > 0 && run.n > kOneCell && run.n - run.position > run.kept &&
           refinements_ < kMostRefinements;
  }
  void refine() {
    ++refinements_;
    cell_boxes_ /= 2;
    allocate(run.capacity);
    for (int64_t done = 0; done < run.kept;) {
      done = for_isa(cpu_isa(), [&](auto isa) { return enter_kept<isa.value>(run, done); });
      if (done < run.kept) grow();
    }
  }

  Run<T> run;

 private:
  void allocate(int64_t capacity) {
    run.x = run.n <= kOneCell ? one_cell<T>() : lay_out(x_, cell_boxes_);
    run.y = run.n <= kOneCell ? one_cell<T>() : lay_out(y_, cell_boxes_);
    heads_.reset();
    heads_.reset(new uint32_t[lay_out_tables(run)]());
    run.heads = heads_.get();
    run.used = run.capacity = 0;
    buckets_.grow(run, capacity);
    run.used = 1;  // bucket 0: empty places overlap nothing
    std::fill_n(run.buckets[0].x1, 2 * kBucketBoxes, std::numeric_limits<T>::max());
    std::fill_n(run.buckets[0].x2, 2 * kBucketBoxes, std::numeric_limits<T>::lowest());
    run.next[0] = 0;
    run.owner[0] = 0;
  }

  Survey<T> x_{}, y_{};
  double cell_boxes_ = kCellBoxes;
  int refinements_ = 0;
  int64_t last_position_ = 0, last_compared_ = 0;
  std::unique_ptr<uint32_t[]> heads_;
  Buckets<T> buckets_;
};

template <typename T>
int64_t suppress_group(const Problem<T>& p, const int32_t* order, int64_t n, int64_t* keep,
                       int64_t most) {
  if (n == 0 || most == 0) return 0;
  Group<T> group(p, order, n, keep, most);
  Run<T>& run = group.run;
  run.pause = 0;
  while (run.position < n && run.kept < most) {
    if (run.position < run.pause)
      group.grow();
    else if (group.wants_refinement())
      group.refine();
    for_isa(cpu_isa(), [&](auto isa) { advance<isa.value>(run); });
  }
  if (p.compared) std::atomic_ref(*p.compared) += run.compared;
  return run.kept;
}

// ---- Strips: one group on several threads -------------------------------------------------------

// Lower edges of `count` strips with about as many boxes each.
template <typename T>
std::vector<T> cut(const Problem<T>& p, int64_t count) {
  std::vector<T> sample;
  for (int64_t k = 0; k < p.n; k += p.n / 1024 + 1)
    sample.push_back(finite(p.boxes[k].y1 * T(0.5) + p.boxes[k].y2 * T(0.5)));
  std::sort(sample.begin(), sample.end());
  std::vector<T> edges{-std::numeric_limits<T>::infinity()};
  for (int64_t k = 1; k < count; ++k) edges.push_back(sample[k * sample.size() / count]);
  edges.push_back(std::numeric_limits<T>::infinity());
  return edges;
}

// Sets kept[index] of every box that is.
template <typename T>
void suppress_in_strips(const Problem<T>& p, const Parallel& parallel, uint8_t* kept) {
  const int64_t strips = std::min<int64_t>(parallel.threads, 255);
  const std::vector<T> edges = cut(p, strips);
  const auto strip_of = std::make_unique_for_overwrite<uint8_t[]>(p.n);
  std::vector<T> heights(strips);
  parallel.run(strips, [&](int64_t s) {
    T most = 0;
    for (int64_t k = s * p.n / strips; k < (s + 1) * p.n / strips; ++k) {
      const Box<T>& b = p.boxes[k];
      const T y = b.y1 * T(0.5) + b.y2 * T(0.5);
      uint8_t strip = 0;
      for (int64_t e = 1; e < strips; ++e) strip += y >= edges[e];
      strip_of[k] = strip;
      most = larger(most, b.y2 - b.y1);
    }
    heights[s] = most;
  });
  const T height = *std::max_element(heights.begin(), heights.end()) + static_cast<T>(p.offset);
  std::vector<std::vector<int64_t>> put_off(strips);
  std::vector<int64_t> compared(strips);
  parallel.run(strips, [&](int64_t s) {
    std::vector<int32_t> order;
    order.reserve(p.n / strips + p.n / 8);
    for (int64_t k = 0; k < p.n; ++k)
      if (strip_of[p.order[k]] == s) order.push_back(p.order[k]);
    const auto n = static_cast<int64_t>(order.size());
    if (n == 0) return;
    const auto keep = std::make_unique_for_overwrite<int64_t[]>(n);
    put_off[s].resize(n);
    Group<T> group(p, order.data(), n, keep.get(), n), waiting(group, put_off[s].data());
    Run<T>& run = group.run;
    Strip<T> strip{edges[s], edges[s + 1], height, waiting.run};
    run.pause = 0;
    while (run.position < n) {
      if (run.position < run.pause)
        (strip.short_of_buckets ? waiting : group).grow();
      else if (group.wants_refinement())
        group.refine(), waiting.refine();
      for_isa(cpu_isa(), [&](auto isa) { advance_strip<isa.value>(run, strip); });
    }
    for (int64_t k = 0; k < run.kept; ++k) kept[keep[k]] = 1;
    put_off[s].resize(waiting.run.kept);
    compared[s] = run.compared + waiting.run.compared;
  });
  if (p.compared) *p.compared += std::accumulate(compared.begin(), compared.end(), int64_t{0});

  std::vector<uint8_t> waits(p.n);
  int64_t n = 0;
  for (const auto& some : put_off)
    for (const int64_t k : some) waits[k] = 1, ++n;
  std::vector<int32_t> order;
  order.reserve(n);
  for (int64_t k = 0; k < p.n; ++k)
    if (waits[p.order[k]]) order.push_back(p.order[k]);
  const auto keep = std::make_unique_for_overwrite<int64_t[]>(n);
  const int64_t found = suppress_group(p, order.data(), n, keep.get(), n);
  for (int64_t k = 0; k < found; ++k) kept[keep[k]] = 1;
}

// ---- Groups -------------------------------------------------------------------------------------

// Positions of `order` sorted by group, and where each group starts.
struct Groups {
  std::unique_ptr<int32_t[]> order;
  std::vector<int64_t> starts;
};

template <typename T>
Groups sort_by_group(const Problem<T>& p) {
  const Grouping groups = groups_of(p.n, p.labels, p.image_ids);
  Groups g;
  g.starts.resize(groups.count + 1);
  for (const int32_t k : groups.of) ++g.starts[k + 1];
  std::partial_sum(g.starts.begin(), g.starts.end(), g.starts.begin());
  g.order = std::make_unique_for_overwrite<int32_t[]>(p.n);
  std::vector<int64_t> end(g.starts.begin(), g.starts.end() - 1);
  for (int64_t k = 0; k < p.n; ++k) g.order[end[groups.of[p.order[k]]]++] = p.order[k];
  return g;
}

// Sets kept[index] of every box that is.
template <typename T>
void suppress_by_group(const Problem<T>& p, const Parallel& parallel, uint8_t* kept) {
  const Groups groups = sort_by_group(p);
  const auto count = static_cast<int64_t>(groups.starts.size()) - 1;
  const auto keep = std::make_unique_for_overwrite<int64_t[]>(p.n);
  parallel.run(count, [&](int64_t g) {
    const int64_t start = groups.starts[g], n = groups.starts[g + 1] - start;
    const int64_t found = suppress_group(p, groups.order.get() + start, n, keep.get() + start, n);
    for (int64_t k = start; k < start + found; ++k) kept[keep[k]] = 1;
  });
}

}  // namespace

template <typename T>
int64_t suppress(const Problem<T>& p, int64_t* keep, int64_t most, const Parallel& parallel) {
  if (p.n == 0 || most == 0) return 0;
  const bool grouped = p.labels || p.image_ids;
  const bool threads = p.n >= parallel.least && parallel.threads > 1;
  if (!grouped && !threads) return suppress_group(p, p.order, p.n, keep, most);
  const auto kept = std::make_unique<uint8_t[]>(p.n);
  if (grouped)
    suppress_by_group(p, threads ? parallel : Parallel{}, kept.get());
  else
    suppress_in_strips(p, parallel, kept.get());
  int64_t found = 0;
  for (int64_t k = 0; k < p.n && found < most; ++k)
    if (kept[p.order[k]]) keep[found++] = p.order[k];
  return found;
}

template int64_t suppress(const Problem<float>&, int64_t*, int64_t, const Parallel&);
template int64_t suppress(const Problem<double>&, int64_t*, int64_t, const Parallel&);

}  // namespace tinyops::greedy
