// How a group of boxes is cut into levels and cells.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

#include "greedy_kernels.h"

namespace tinyops::greedy {

// Sizes are judged by at most so many boxes.
constexpr int64_t kSample = 256;

// What a group is like along one axis.
template <typename T>
struct Survey {
  T low, high, most;  // of all coordinates; the largest extent
  T typical;          // extent that few boxes are much smaller than
  T size;             // the largest width or height
};

// Samples are sorted, which NaN would upset; there is none but without value checks.
template <typename T>
T finite(T x) {
  return x - x == T(0) ? x : T(0);
}

template <typename T>
using Sample = std::array<T, kSample>;

template <typename T>
T median(Sample<T>& sample, int64_t n) {
  std::nth_element(sample.begin(), sample.begin() + n / 2, sample.begin() + n);
  return sample[n / 2];
}

// `extents` are of boxes that are not empty.
template <typename T>
Survey<T> survey(Sample<T>& extents, int64_t n, T low, T high, T size) {
  const T most = extent_of(size, slack_of(low, high));
  if (n == 0) return {low, high, most, most, size};
  T typical = smaller(median(extents, n), std::numeric_limits<T>::max() / T(1024));
  const auto end = extents.begin() + n;
  const auto smaller_ones = [&] {
    return std::count_if(extents.begin(), end, [&](T e) { return e < typical / 16; });
  };
  // Many boxes that are small against a cell would all have to be compared. The typical box must
  // not end in the last level, though, which may be a single cell.
  for (int k = 0; k < kMostLevels - 4 && smaller_ones() > n / 64; ++k) typical /= 4;
  return {low, high, most, typical, size};
}

// The median of one coordinate of the boxes.
template <typename T>
T middle(const Run<T>& run, T Box<T>::* coordinate) {
  Sample<T> sample;
  const int64_t n = std::min(run.n, kSample);
  for (int64_t k = 0; k < n; ++k)
    sample[k] = finite(run.boxes[run.order[k * run.n / n]].*coordinate);
  return median(sample, n);
}

// `order` may be null if it is all boxes.
template <typename T>
std::pair<Survey<T>, Survey<T>> survey(const Run<T>& run, const int32_t* order) {
  const Extremes<T> e =
      for_isa(cpu_isa(), [&](auto isa) { return extremes<isa.value>(run.boxes, order, run.n); });
  const T offset = run.legacy ? T(1) : T(0);
  Sample<T> widths, heights;
  int64_t n = 0;
  for (int64_t k = 0; k < std::min(run.n, kSample); ++k) {
    const Box<T>& b = run.boxes[run.order[k * run.n / std::min(run.n, kSample)]];
    const T width = b.x2 - b.x1 + offset, height = b.y2 - b.y1 + offset;
    if (!(width > T(0) && height > T(0))) continue;
    widths[n] = finite(extent_of(width, slack_of(b.x1, b.x2)));
    heights[n++] = finite(extent_of(height, slack_of(b.y1, b.y2)));
  }
  return {survey(widths, n, e.low_x, e.high_x, e.width + offset),
          survey(heights, n, e.low_y, e.high_y, e.height + offset)};
}

constexpr double kFarthestCell = 0x1p20;

template <typename T>
Axis<T> one_cell() {
  Axis<T> axis;
  axis.size[0] = std::numeric_limits<T>::infinity();
  axis.inverse[0] = axis.first[0] = axis.last[0] = 0;
  return axis;
}

template <typename T>
Axis<T> lay_out(const Survey<T>& s, double cell_boxes) {
  Axis<T> axis;
  T cell = larger(s.typical * static_cast<T>(cell_boxes), std::numeric_limits<T>::min() * T(1024));
  axis.origin = s.low;
  axis.levels = 0;
  T size = cell * kLevelCells;
  do {
    const int level = axis.levels++;
    axis.size[level] = size;
    axis.inverse[level] = 1 / cell;
    axis.first[level] = 0;
    const double cells = (double{s.high} - s.low) / cell;
    axis.last[level] = static_cast<T>(cells < kFarthestCell ? cells : kFarthestCell);  // NaN too
    // Most boxes are in the first level and smaller than its cells, those of the others are not.
    cell = size = size * 4;
  } while (axis.size[axis.levels - 1] < s.most && axis.levels < kMostLevels);
  const int top = axis.levels - 1;
  if (axis.size[top] < s.most) {
    axis.size[top] = std::numeric_limits<T>::infinity();
    axis.inverse[top] = axis.last[top] = 0;
  }
  return axis;
}

// Rows of cells where those are not many more than boxes, else a hash table. Returns the slots.
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
  // Around the median, so that a few boxes far away do not take all the numbers.
  run.x.origin = middle(run, &Box<T>::x1);
  run.y.origin = middle(run, &Box<T>::y1);
  for (Axis<T>* axis : {&run.x, &run.y}) {
    for (int k = 0; k < axis->levels; ++k) {
      axis->last[k] = axis->inverse[k] == 0 ? T(0) : T(kFarthestCell);
      axis->first[k] = -axis->last[k];
    }
  }
  // The fractional parts of multiples of these spread points of the plane evenly: powers of the
  // inverse of the plastic number (Roberts, 2018, the R2 sequence), and of the golden ratio.
  constexpr uint32_t kX = 3242174889u, kY = 2447445414u, kTable = 2654435769u;
  // With several levels, a kept box is entered in several tables.
  const int64_t entries = run.x.levels + run.y.levels > 2 ? 8 : 2;
  const int bits = std::min(31, static_cast<int>(std::bit_width(uint64_t(entries * run.n))));
  for (uint32_t k = 0; k < kMostLevels * kMostLevels; ++k) run.tables[k] = {kX, kY, k * kTable};
  run.shift = 32 - bits;
  return int64_t{1} << bits;
}

}  // namespace tinyops::greedy
