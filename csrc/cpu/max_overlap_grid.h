// Which targets are near a box: uniform grids of cells, each four times as coarse as the one
// before.
//
// A target is listed in every cell that it touches, of the finest grid where it is at most three
// cells long: in sixteen at most, and four or fewer if it is of the usual size. A box looks at the
// cells that it touches in every grid. Both find their cells by the same monotonic function of a
// coordinate, so that a box and a target with a common point have a common cell, whatever is
// rounded. Memory is O(targets). The queries are in max_overlap_near.h.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "max_overlap.h"

namespace tinyops::max_overlap {

template <typename T>
class Grid {
 public:
  // Targets of one image, with their corners in a to d. Those without area overlap nothing.
  Grid(const Side<T>* sides, const int32_t* targets, int64_t n) {
    constexpr T kLargest = std::numeric_limits<T>::max();
    Extent all{kLargest, kLargest, -kLargest, -kLargest};
    double total = 0;
    T longest = 0;
    std::vector<int32_t> waiting;
    waiting.reserve(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) {
      const Side<T>& s = sides[j];
      if (!(s.c > s.a && s.d > s.b)) continue;
      waiting.push_back(static_cast<int32_t>(j));
      all = {std::min(all.x1, s.a), std::min(all.y1, s.b), std::max(all.x2, s.c),
             std::max(all.y2, s.d)};
      total += static_cast<double>(longer(s));
      longest = std::max(longest, longer(s));
    }
    const double count = static_cast<double>(waiting.size());
    const double width = static_cast<double>(all.x2) - static_cast<double>(all.x1);
    const double height = static_cast<double>(all.y2) - static_cast<double>(all.y1);
    // Sixteen cells per target, fewer only where they would be smaller than targets.
    double cell = std::max({total / count, std::sqrt(width / (16 * count)) * std::sqrt(height),
                            std::max(width, height) / (16 * count)});
    if (!(cell < static_cast<double>(kLargest))) cell = static_cast<double>(kLargest);
    levels_.reserve(kLevels);
    for (; !waiting.empty(); cell *= 4) {
      const double most = levels_.size() + 1 == kLevels ? HUGE_VAL : kCells * cell;
      const auto fits = [&](int32_t j) { return !(static_cast<double>(longer(sides[j])) > most); };
      const auto rest = std::stable_partition(waiting.begin(), waiting.end(), fits);
      const std::vector<int32_t> own(waiting.begin(), rest);
      waiting.erase(waiting.begin(), rest);
      if (!own.empty()) levels_.emplace_back(sides, targets, own, all, cell);
    }
    for (Level& level : levels_) views_.levels[views_.count++] = level.view();
  }

  const GridView<T>& view() const { return views_; }

  // How much a query has to do: rows of cells, and entries in them.
  void count(const Side<T>& box, int64_t& rows, int64_t& entries) const {
    for (const Level& level : levels_) {
      const int left = level.x.cell(box.a), right = level.x.cell(box.c);
      const int top = level.y.cell(box.b), bottom = level.y.cell(box.d);
      rows += std::max(0, bottom - top + 1);
      for (int row = top; row <= bottom; ++row) {
        const int32_t* start = level.start.data() + int64_t{row} * level.columns;
        entries += std::max(0, start[right + 1] - start[left]);
      }
    }
  }

 private:
  static constexpr double kCells = 3;  // that a target may be long
  static constexpr size_t kLevels = GridView<T>::kLevels;

  struct Extent {
    T x1, y1, x2, y2;
  };
  struct Level {
    CellAxis<T> x, y;
    int columns;
    std::vector<int32_t> start;  // of each cell, row by row, in entries
    std::array<std::vector<T>, 5> sides;
    std::vector<int32_t> target;

    Level(const Side<T>* from, const int32_t* targets, const std::vector<int32_t>& own,
          const Extent& all, double cell)
        : x(axis(all.x1, all.x2, cell)), y(axis(all.y1, all.y2, cell)) {
      columns = static_cast<int>(x.last) + 1;
      start.assign(static_cast<size_t>(columns * (static_cast<int64_t>(y.last) + 1) + 1), 0);
      for_cells(from, own, [&](int32_t, size_t c) { ++start[c + 1]; });
      for (size_t c = 1; c < start.size(); ++c) start[c] += start[c - 1];
      // A query reads whole vectors: behind the last entry there are some that nothing overlaps.
      const size_t count = static_cast<size_t>(start.back()), padded = count + kMostLanes;
      for (auto& side : sides) side.assign(padded, T(0));
      target.assign(padded, 0);
      std::vector<int32_t> next(start.begin(), start.end() - 1);
      for_cells(from, own, [&](int32_t j, size_t c) {
        const size_t k = static_cast<size_t>(next[c]++);
        const Side<T>& s = from[j];
        sides[0][k] = s.a, sides[1][k] = s.b, sides[2][k] = s.c, sides[3][k] = s.d;
        sides[4][k] = s.e;
        target[k] = targets[j];
      });
    }
    LevelView<T> view() const {
      return {x,
              y,
              columns,
              start.data(),
              {sides[0].data(), sides[1].data(), sides[2].data(), sides[3].data(), sides[4].data()},
              target.data()};
    }

   private:
    static CellAxis<T> axis(T begin, T end, double cell) {
      // At most sixteen cells per target; coordinates near infinity share one.
      const double whole = (static_cast<double>(end) - static_cast<double>(begin)) / cell;
      return {begin, static_cast<T>(1.0 / cell),
              whole < 1e9 ? std::floor(static_cast<T>(whole)) : T(0)};
    }
    template <typename F>
    void for_cells(const Side<T>* from, const std::vector<int32_t>& own, const F& f) const {
      for (const int32_t j : own) {
        const Side<T>& s = from[j];
        const int left = x.cell(s.a), right = x.cell(s.c);
        const int top = y.cell(s.b), bottom = y.cell(s.d);
        for (int row = top; row <= bottom; ++row)
          for (int column = left; column <= right; ++column)
            f(j, static_cast<size_t>(int64_t{row} * columns + column));
      }
    }
  };

  static T longer(const Side<T>& s) { return std::max(s.c - s.a, s.d - s.b); }

  std::vector<Level> levels_;
  GridView<T> views_{};
};

}  // namespace tinyops::max_overlap
