// The CPU kernels of max_overlap: boxes against all targets of their image, or against those near
// them. And the operator itself, for others.
#pragma once
#include "../ops/max_overlap.h"
#include "isa.h"

namespace tinyops::max_overlap {

// Boxes order[begin..end), or begin..end where order is null, and the targets of their image, in
// the order of their indices; n > 0.
template <typename T>
struct Group {
  Mode mode;
  const Box<T>* boxes;
  const int32_t* order;
  int64_t begin, end;
  const Side<T>* sides;
  const int32_t* targets;
  int64_t n;

  TINYOPS_HD int64_t box_at(int64_t position) const { return order ? order[position] : position; }
};

// Cells along one axis. A coordinate in one of them; monotonic, and NaN is in cell 0.
template <typename T>
struct CellAxis {
  T origin, inverse, last;  // inverse of the size of a cell, index of the last cell

  TINYOPS_HD int cell(T v) const {
    return static_cast<int>(smaller(last, larger((v - origin) * inverse, T(0))));
  }
};

// A Grid (max_overlap_grid.h) as the kernels see it.
template <typename T>
struct LevelView {
  CellAxis<T> x, y;
  int columns;
  const int32_t* start;  // of each cell, row by row, in entries; one more than there are cells
  const T* sides[5];     // of entries, and so many more of empty boxes
  const int32_t* target;
};
inline constexpr int kMostLanes = 16;
template <typename T>
struct GridView {
  static constexpr int kLevels = 12;
  LevelView<T> levels[kLevels];
  int count;
};

// The best target of every box, into value[box] and index[box].
template <Isa isa, typename T>
void best_of_all(const Group<T>& group, T* value, int64_t* index);

template <Isa isa, typename T>
void best_of_near(const Group<T>& group, const GridView<T>& grid, T* value, int64_t* index);

// The last target whose key with the box is at least its cut[target], and the value at least
// min_value and above 0 (kGiou: any); into assigned[box], which is left alone if there is none.
template <Isa isa, typename T>
void last_of_all(const Group<T>& group, const T* cut, T min_value, int64_t* assigned);

template <Isa isa, typename T>
void last_of_near(const Group<T>& group, const GridView<T>& grid, const T* cut, T min_value,
                  int64_t* assigned);

// The whole operator without checks: value [k] and index [k].
template <typename T>
void run(const Problem<T>& problem, T* value, int64_t* index);

}  // namespace tinyops::max_overlap
