#include "greedy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "greedy_kernels.h"

namespace tinyops::greedy {
namespace {

// Cells are this many times as large as a typical box: larger ones hold more boxes to compare,
// smaller ones have kept boxes entered in more of them.
constexpr double kCellBoxes = 4;
// The largest box of a level is so many cells long.
constexpr int kLevelCells = 2;
// Sizes are judged by at most so many boxes.
constexpr int64_t kSample = 1024;
// Up to so many boxes need no grid.
constexpr int64_t kOneCell = 64;
// From so many boxes on, threads pay.
constexpr int64_t kThreadBoxes = 50000;
// From such a threshold downwards, size ratios say little.
constexpr double kAroundThreshold = 0.01;

template <typename T>
T round_down(double x) {
  const T y = static_cast<T>(x);
  return static_cast<double>(y) > x ? std::nextafter(y, std::numeric_limits<T>::lowest()) : y;
}

// The extent that few boxes are much smaller than; `extents` are of a sample of a group.
template <typename T>
T typical(std::array<T, kSample>& extents, int64_t n) {
  const auto begin = extents.begin(), end = begin + n;
  std::nth_element(begin, begin + n / 2, end);
  T x = extents[n / 2];
  // Many boxes that are small against a cell would all have to be compared.
  while (x > 0 && std::count_if(begin, end, [&](T e) { return e < x / 16; }) > n / 64) x /= 4;
  return x;
}

template <typename T>
Axis<T> lay_out(T typical, T low, T high, T size) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T most = extent_of(size, slack_of(low, high));
  Axis<T> axis;
  T cell = larger(typical * T(kCellBoxes), std::numeric_limits<T>::min() * T(1024));
  axis.origin = low;
  axis.levels = 0;
  do {
    const int level = axis.levels++;
    axis.size[level] = cell * kLevelCells;
    axis.inverse[level] = 1 / cell;
    axis.last[level] = static_cast<T>(std::min((double{high} - low) / cell, 0x1p20));
    cell *= 4;
  } while (axis.size[axis.levels - 1] < most && axis.levels < kMostLevels);
  const int top = axis.levels - 1;
  if (axis.size[top] < most) axis.size[top] = kInfinity, axis.inverse[top] = axis.last[top] = 0;
  return axis;
}

// `order` may be null if it is all boxes.
template <typename T>
void lay_out_axes(Run<T>& run, const int32_t* order) {
  if (run.n <= kOneCell) {
    for (Axis<T>* axis : {&run.x, &run.y}) {
      axis->size[0] = std::numeric_limits<T>::infinity();
      axis->inverse[0] = axis->last[0] = 0;
    }
    return;
  }
  const Extremes<T> e =
      for_isa(cpu_isa(), [&](auto isa) { return extremes<isa.value>(run.boxes, order, run.n); });
  const T offset = run.legacy ? T(1) : T(0);
  std::array<T, kSample> widths, heights;
  const int64_t taken = std::min(run.n, kSample);
  for (int64_t k = 0; k < taken; ++k) {
    const Box<T>& b = run.boxes[run.order[k * run.n / taken]];
    widths[k] = extent_of(b.x2 - b.x1 + offset, slack_of(b.x1, b.x2));
    heights[k] = extent_of(b.y2 - b.y1 + offset, slack_of(b.y1, b.y2));
  }
  run.x = lay_out(typical(widths, taken), e.low_x, e.high_x, e.width + offset);
  run.y = lay_out(typical(heights, taken), e.low_y, e.high_y, e.height + offset);
}

// Rows of cells where those are not many more than boxes, else a hash table.
template <typename T>
int64_t lay_out_tables(Run<T>& run) {
  const auto cells = [](const Axis<T>& axis, int k) { return int64_t(axis.last[k]) + 1; };
  int64_t total = 0;
  for (int b = 0; b < run.y.levels; ++b) {
    for (int a = 0; a < run.x.levels; ++a) {
      Table& table = run.tables[b * kMostLevels + a];
      table = {1, static_cast<uint32_t>(cells(run.x, a)), static_cast<uint32_t>(total)};
      total += cells(run.x, a) * cells(run.y, b);
    }
  }
  run.shift = 0;
  if (total <= 4 * run.n + 64) return total;
  // The fractional parts of multiples of these spread points of the plane evenly: powers of the
  // inverse of the plastic number (Roberts, 2018, the R2 sequence), and of the golden ratio.
  constexpr uint32_t kX = 3242174889u, kY = 2447445414u, kTable = 2654435769u;
  const int bits = std::bit_width(static_cast<uint64_t>(2 * run.n));
  for (uint32_t k = 0; k < kMostLevels * kMostLevels; ++k) run.tables[k] = {kX, kY, k * kTable};
  run.shift = 32 - bits;
  return int64_t{1} << bits;
}

// The memory of the buckets, which grows as they are used up.
template <typename T>
class Buckets {
 public:
  void grow(Run<T>& run, int64_t capacity) {
    auto buckets = std::make_unique_for_overwrite<Bucket<T>[]>(capacity);
    auto next = std::make_unique_for_overwrite<uint32_t[]>(capacity);
    std::copy_n(buckets_.get(), run.used, buckets.get());
    std::copy_n(next_.get(), run.used, next.get());
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
    run.capacity = static_cast<uint32_t>(capacity);
  }

 private:
  std::unique_ptr<Bucket<T>[]> buckets_;
  std::unique_ptr<BucketTiles[]> tiles_;
  std::unique_ptr<uint32_t[]> next_;
};

// One group: boxes of one label in one image, order[0..n), best first.
template <typename T>
int64_t suppress_group(const Problem<T>& p, const int32_t* order, int64_t n, int64_t* keep,
                       int64_t most) {
  if (n == 0 || most == 0) return 0;
  Run<T> run;
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
  lay_out_axes(run, n == p.n ? nullptr : order);
  const std::unique_ptr<uint32_t[]> heads(new uint32_t[lay_out_tables(run)]());
  run.heads = heads.get();
  Buckets<T> buckets;
  run.used = 0;
  buckets.grow(run, n / 2 + 64);
  run.used = 1;  // bucket 0: empty places overlap nothing
  std::fill_n(run.buckets[0].x1, 2 * kBucketBoxes, std::numeric_limits<T>::max());
  std::fill_n(run.buckets[0].x2, 2 * kBucketBoxes, std::numeric_limits<T>::lowest());
  run.next[0] = 0;
  for (;;) {
    for_isa(cpu_isa(), [&](auto isa) { advance<isa.value>(run); });
    if (run.position >= n || run.kept == most) return run.kept;
    buckets.grow(run, 2 * int64_t{run.capacity});
  }
}

// Positions of `order` sorted by group, and where each group starts.
struct Groups {
  std::unique_ptr<int32_t[]> order;
  std::vector<int64_t> starts;
};

// Counts up the groups from 0: directly where ids are dense, else by a hash table.
template <typename T>
std::vector<int32_t> group_of_each(const Problem<T>& p, int64_t* groups) {
  const auto least_and_range = [&](const int64_t* ids) {
    if (!ids) return std::pair<int64_t, uint64_t>{0, 1};
    const auto [least, most] = std::minmax_element(ids, ids + p.n);
    return std::pair{*least, static_cast<uint64_t>(*most) - static_cast<uint64_t>(*least) + 1};
  };
  const auto [label, labels] = least_and_range(p.labels);
  const auto [image, images] = least_and_range(p.image_ids);
  const auto few = static_cast<uint64_t>(4 * p.n + 1024);
  std::vector<int32_t> group(p.n);
  if (labels - 1 < few && images - 1 < few && labels * images <= few) {
    for (int64_t k = 0; k < p.n; ++k) {
      const int64_t i = p.image_ids ? p.image_ids[k] - image : 0;
      const int64_t l = p.labels ? p.labels[k] - label : 0;
      group[k] = static_cast<int32_t>(i * static_cast<int64_t>(labels) + l);
    }
    *groups = static_cast<int64_t>(labels * images);
    return group;
  }
  struct Hash {
    size_t operator()(const std::pair<int64_t, int64_t>& x) const {
      const uint64_t mixed = static_cast<uint64_t>(x.first) * 0x9e3779b97f4a7c15 + x.second;
      return (mixed ^ (mixed >> 32)) * 0xbf58476d1ce4e5b9;
    }
  };
  std::unordered_map<std::pair<int64_t, int64_t>, int32_t, Hash> numbers;
  for (int64_t k = 0; k < p.n; ++k) {
    const std::pair id{p.image_ids ? p.image_ids[k] : 0, p.labels ? p.labels[k] : 0};
    group[k] = numbers.try_emplace(id, static_cast<int32_t>(numbers.size())).first->second;
  }
  *groups = static_cast<int64_t>(numbers.size());
  return group;
}

template <typename T>
Groups sort_by_group(const Problem<T>& p) {
  int64_t groups;
  const std::vector<int32_t> group = group_of_each(p, &groups);
  Groups g;
  g.starts.resize(groups + 1);
  for (const int32_t k : group) ++g.starts[k + 1];
  std::partial_sum(g.starts.begin(), g.starts.end(), g.starts.begin());
  g.order = std::make_unique_for_overwrite<int32_t[]>(p.n);
  std::vector<int64_t> end(g.starts.begin(), g.starts.end() - 1);
  for (int64_t k = 0; k < p.n; ++k) g.order[end[group[p.order[k]]]++] = p.order[k];
  return g;
}

}  // namespace

template <typename T>
int64_t suppress(const Problem<T>& p, int64_t* keep, int64_t most, const Parallel& parallel) {
  if (!p.labels && !p.image_ids) return suppress_group(p, p.order, p.n, keep, most);
  const Groups groups = sort_by_group(p);
  const auto count = static_cast<int64_t>(groups.starts.size()) - 1;
  const auto kept = std::make_unique<uint8_t[]>(p.n);
  const auto kept_of_group = std::make_unique_for_overwrite<int64_t[]>(p.n);
  parallel(p.n < kThreadBoxes ? 1 : count, count, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t start = groups.starts[g], n = groups.starts[g + 1] - start;
      int64_t* const mine = kept_of_group.get() + start;
      const int64_t found = suppress_group(p, groups.order.get() + start, n, mine, n);
      for (int64_t k = 0; k < found; ++k) kept[mine[k]] = 1;
    }
  });
  int64_t found = 0;
  for (int64_t k = 0; k < p.n && found < most; ++k)
    if (kept[p.order[k]]) keep[found++] = p.order[k];
  return found;
}

template int64_t suppress(const Problem<float>&, int64_t*, int64_t, const Parallel&);
template int64_t suppress(const Problem<double>&, int64_t*, int64_t, const Parallel&);

}  // namespace tinyops::greedy
