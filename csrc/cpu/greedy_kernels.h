// The suppression kernel of one group of boxes, one instantiation per instruction set and type.
//
// Kept boxes lie in a grid of cells. A kept box is entered in every cell that the centre of a box
// that it suppresses can lie in, so that the next box looks into one cell, the cell of its own
// centre, where buckets of eight kept boxes are compared at once.
//
// How far is that? Two boxes of widths w and v with IoU > t have v >= t*w, w >= t*v, and centres
// closer than (w + v)/2 - t*max(w, v). Widths and heights are sorted into levels whose cells grow
// by a factor of four, each pair of levels with a grid of its own: a box is entered and looked for
// in the grids from its own levels up to those of w/t and h/t, so that two boxes meet in the grid
// of the larger level of each axis. Where size ratios are not bounded (intersection over the
// smaller area, or t near 0), kept boxes are entered in the cell of their own centre alone, and a
// box looks into all cells around it.
#pragma once
#include "../ops/boxes.h"
#include "greedy.h"
#include "isa.h"

namespace tinyops::greedy {

constexpr int kBucketBoxes = 8;
constexpr int kMostLevels = 12;
// The largest box of the first level is so many cells long; those of others are one.
constexpr int kLevelCells = 4;

template <typename T>
struct alignas(64) Bucket {
  T x1[kBucketBoxes], y1[kBucketBoxes], x2[kBucketBoxes], y2[kBucketBoxes];
};
struct alignas(32) BucketTiles {
  int32_t tile[kBucketBoxes];
};

// What an axis sorts a box by: its width or height, but not less than what rounding makes of its
// coordinates, so that neither a cell nor a window of cells is ever finer than those.
template <typename T>
constexpr T kRounding = sizeof(T) == 8 ? T(0x1p-50) : T(0x1p-21);
template <typename T>
TINYOPS_HD T slack_of(T low, T high) {
  return ((low < T(0) ? -low : low) + (high < T(0) ? -high : high)) * kRounding<T>;
}
template <typename T>
TINYOPS_HD T extent_of(T size, T slack) {
  return larger(size, slack * T(16));
}

// One axis of the grids.
template <typename T>
struct Axis {
  int levels = 1;
  T origin = 0;
  T size[kMostLevels];                      // the largest extent of a level
  T inverse[kMostLevels];                   // 1 / width of its cells; 0: one cell
  T first[kMostLevels], last[kMostLevels];  // of its cells
};

// The slot of cell (i, j) is (i*x + j*y + add) >> shift: rows of cells, or a hash of them.
struct Table {
  uint32_t x, y, add;
  uint32_t buckets = 0, newest = 0;  // the list of its buckets
};

template <typename T>
struct Run {
  // The problem.
  const Box<T>* boxes;
  const int32_t* order;
  int64_t n;
  Rule rule;
  T threshold, ios_threshold;  // rounded down to T: x > threshold is then exact
  bool around;                 // size ratios are not bounded: see above
  bool legacy;                 // widths are x2 - x1 + 1
  const int32_t* tiles;
  const uint8_t* truncated;
  // The grids.
  Axis<T> x, y;
  Table tables[kMostLevels * kMostLevels];  // level of y times kMostLevels + level of x
  int shift;
  uint32_t* heads;  // newest bucket of the chain of a slot << 4 | boxes in it; 0: empty
  // The buckets; number 0 is empty and ends every chain.
  Bucket<T>* buckets;
  BucketTiles* bucket_tiles;  // kStitch
  uint32_t *next, *next_in_table = nullptr;
  uint8_t* owner;  // number of the table
  uint32_t used, capacity;
  // How far it is.
  int64_t position = 0, kept = 0, most, pause;
  int64_t* keep;
  int64_t compared = 0;  // buckets looked at
};

// The extremes of a group.
template <typename T>
struct Extremes {
  T low_x, low_y, high_x, high_y;  // of all coordinates
  T width, height;                 // of any box
};

// Of the boxes at order[0..n), or of the first n where order is null.
template <Isa isa, typename T>
Extremes<T> extremes(const Box<T>* boxes, const int32_t* order, int64_t n);

// Part of a group, so that several threads can work on it: the boxes whose centre's y is in
// [low, high). Boxes that one of another strip could make go are put off, and so are those that
// overlap a better one that is: they only meet each other, and can be decided afterwards.
template <typename T>
struct Strip {
  T low, high;
  T height;  // of the highest box of the group
  Run<T>& put_off;
  bool short_of_buckets = false;  // put_off is, and not the strip's own run
};

// Both go on until `pause` boxes are decided, `most` are kept, or `capacity` may not do for the
// next.
template <Isa isa, typename T>
void advance(Run<T>& run);
template <Isa isa, typename T>
void advance_strip(Run<T>& run, Strip<T>& strip);

// Enters keep[from..kept) anew, into a grid that was laid out again; returns where it had to stop
// for lack of buckets, or `kept`.
template <Isa isa, typename T>
int64_t enter_kept(Run<T>& run, int64_t from);

}  // namespace tinyops::greedy
