// out = features * channel_weight * (1 + mask)                                SR-TOD eq. 4 and 6
// mask = resize(0.5 * (sign(difference - threshold) + 1))
// Sizes, pointers and per-element maths of one problem, shared by the CPU and CUDA kernels.
//
// A map pixel has a code, twice its mask: 2 above the threshold, 0 below, 1 on a tie (and where NaN
// leaves the order open). Codes are added and compared as integers, so that masks are exact.
#pragma once
#include "../common.h"

namespace tinyops::difference_gate {

// Values are the codes in the schema.
enum class Resize {
  kNearest = 0,  // the first pixel of the block
  kArea = 1,     // the mean of the block
  kMax = 2,      // the largest of the block
};
enum class Ste {
  kIdentity = 0,  // straight through: d sign(x)/dx := 1 for |x| <= 1
  kNone = 1,      // d sign(x)/dx = 0
};

struct Problem {
  int64_t images, channels;
  int32_t height, width;              // of features: cells
  int32_t block_rows, block_columns;  // map pixels of one cell
  Resize resize;
  bool channels_last;  // layout of every [N, C, h, w] tensor; difference is a plane in both

  TINYOPS_HD int64_t cells() const { return static_cast<int64_t>(height) * width; }
  TINYOPS_HD int64_t map_width() const { return static_cast<int64_t>(width) * block_columns; }
  TINYOPS_HD int64_t map_pixels() const { return height * map_width() * block_rows; }
  TINYOPS_HD int64_t block_pixels() const {
    return static_cast<int64_t>(block_rows) * block_columns;
  }
  // Index of the first map pixel of a cell, in the map of its image.
  TINYOPS_HD int64_t block_start(int32_t y, int32_t x) const {
    return static_cast<int64_t>(y) * block_rows * map_width() +
           static_cast<int64_t>(x) * block_columns;
  }
};

template <typename A>
TINYOPS_HD int code_of(A difference, A threshold) {
  return 1 + (difference > threshold) - (difference < threshold);
}
// Where a gradient passes straight through: not where the distance is NaN.
template <typename A>
TINYOPS_HD bool is_near(A difference, A threshold) {
  const A distance = difference - threshold;
  return distance <= A(1) && distance >= A(-1);
}

}  // namespace tinyops::difference_gate
