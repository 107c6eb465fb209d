// Queries of a Grid (max_overlap_grid.h): a vector of boxes finds its cells, then every box goes
// through the entries of its cells, a vector of them at a time. Of a vector that is not full the
// rest is entries of cells further on, targets like others: looking at them changes no result.
#pragma once
#include "max_overlap.h"
#include "max_overlap_vectors.h"

namespace tinyops::max_overlap {
namespace {

// Calls start(box index) for every box of the group, visit(keys, hits, targets) for vectors of
// entries of which at least one intersects the box, and finish(box index); for a box with targets
// near, once more start and finish before that, with nothing between. `hits` has a bit per
// lane, `targets` is the index of the target in each. A target may be visited more than once.
template <Mode kMode, typename T, typename S, typename V, typename F>
inline void for_near(const Group<T>& g, const GridView<T>& grid, const S& start, const V& visit,
                     const F& finish) {
  constexpr int kStep = kLanes<T>;
  alignas(64) int32_t cells[GridView<T>::kLevels][4][kStep];
  for (int64_t at = g.begin; at < g.end; at += kStep) {
    const int count = static_cast<int>(g.end - at < kStep ? g.end - at : kStep);
    const Side<Vector<T>> boxes = load_boxes<Mode::kIou>(g.boxes, g.order, at, count);
    for (int l = 0; l < grid.count; ++l) {
      const LevelView<T>& level = grid.levels[l];
      const auto store = [&](int which, const CellAxis<T>& axis, Vector<T> v) {
        const Vector<T> q = (v - axis.origin) * axis.inverse;
        const Vector<T> cell = smaller(all_lanes(axis.last), larger(q, Vector<T>{}));
        const Ints<T> whole = __builtin_convertvector(cell, Ints<T>);
        __builtin_memcpy(cells[l][which], &whole, sizeof(whole));
      };
      store(0, level.x, boxes.a);
      store(1, level.x, boxes.c);
      store(2, level.y, boxes.b);
      store(3, level.y, boxes.d);
    }
    // First without a branch which boxes have targets near, and the result of those that have not.
    unsigned busy = 0;
    for (int l = 0; l < grid.count; ++l) {
      const LevelView<T>& level = grid.levels[l];
      for (int k = 0; k < count; ++k) {
        const int left = cells[l][0][k], right = cells[l][1][k];
        const int top = cells[l][2][k], bottom = cells[l][3][k];
        const int32_t* first = level.start + int64_t{top} * level.columns;
        const int32_t* last = level.start + int64_t{bottom} * level.columns;
        const int entries = (first[right + 1] - first[left]) | (last[right + 1] - last[left]);
        busy |= static_cast<unsigned>((entries != 0) | (bottom - top > 1)) << k;
      }
    }
    for (int k = 0; k < count; ++k) {
      const int64_t i = g.box_at(at + k);
      start(i);
      finish(i);
    }
    for (; busy; busy &= busy - 1) {
      const int k = __builtin_ctz(busy);
      const int64_t i = g.box_at(at + k);
      start(i);
      const Side<Vector<T>> box = all_lanes(side_of<kMode, false>(g.boxes[i]));
      for (int l = 0; l < grid.count; ++l) {
        const LevelView<T>& level = grid.levels[l];
        const int left = cells[l][0][k], right = cells[l][1][k], bottom = cells[l][3][k];
        for (int row = cells[l][2][k]; row <= bottom; ++row) {
          const int32_t* starts = level.start + int64_t{row} * level.columns;
          const int32_t end = starts[right + 1];
          for (int32_t e = starts[left]; e < end; e += kStep) {
            const Side<Vector<T>> target{
                read<Vector<T>>(level.sides[0] + e), read<Vector<T>>(level.sides[1] + e),
                read<Vector<T>>(level.sides[2] + e), read<Vector<T>>(level.sides[3] + e),
                read<Vector<T>>(level.sides[4] + e)};
            const Vector<T> in = overlap_area(box, target);
            const unsigned hits = above(in, Vector<T>{});
            if (hits) visit(key_of_intersection<kMode>(in, box, target), hits, level.target + e);
          }
        }
      }
      finish(i);
    }
  }
}

// Calls f with one of the modes in which a grid can be used.
template <typename F>
inline void for_local_mode(Mode mode, const F& f) {
  for_mode(mode, [&](auto chosen) {
    if constexpr (is_local(decltype(chosen)::value)) f(chosen);
  });
}

}  // namespace
}  // namespace tinyops::max_overlap
