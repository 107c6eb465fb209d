// Sums of |prediction - target| over all cells and over the cells under boxes      EFPN eq. 5-7
// Sizes and pointers of one problem, and the cells of a box, shared by the CPU and CUDA kernels.
#pragma once
#include <cmath>

#include "boxes.h"
#include "valid.h"

namespace tinyops::balanced_l1 {

struct Problem {
  int64_t images, channels;
  int32_t height, width;
  bool channels_last;  // layout of prediction, target and their gradients
  int32_t boxes;
  double scale;  // cells per pixel

  TINYOPS_HD int64_t plane() const { return static_cast<int64_t>(height) * width; }
  TINYOPS_HD int64_t cells() const { return images * plane(); }
  TINYOPS_HD int64_t numel() const { return cells() * channels; }
};

// What a cell counts for: a byte per cell of every image, made from the boxes before all else.
enum : uint8_t {
  kOutside = 0,   // padding: for nothing
  kInside = 1,    // for the sum over all cells
  kPositive = 2,  // for both sums
};

// The cells [left, right) x [top, bottom) that a box touches: it is snapped outwards to the grid.
struct Cells {
  int32_t left, top, right, bottom;
};

// In float64, so that float32 coordinates give the same cells on every device. A bound that is not
// a number, a box with x2 < x1 or y2 < y1, and one outside the valid part have no cells.
template <typename T>
TINYOPS_HD Cells cells_of(const Box<T>& b, double scale, Extent valid) {
  const double x1 = b.x1, y1 = b.y1, x2 = b.x2, y2 = b.y2;
  if (!(x1 <= x2 && y1 <= y2)) return {0, 0, 0, 0};
  const auto clamp = [](double x, int32_t most) {
    return x > 0 ? (x < most ? static_cast<int32_t>(x) : most) : 0;
  };
  return {clamp(floor(x1 * scale), valid.columns), clamp(floor(y1 * scale), valid.rows),
          clamp(ceil(x2 * scale), valid.columns), clamp(ceil(y2 * scale), valid.rows)};
}

// prediction and target in the layout of the problem, mask [N, H*W].
template <typename T>
struct ForwardArgs {
  const T *prediction, *target;
  const uint8_t* mask;
};

// d_total and d_positive are single numbers. A gradient that nobody asks for is null.
template <typename T>
struct BackwardArgs {
  const T *prediction, *target;
  const uint8_t* mask;
  const acc_t<T>*d_total, *d_positive;
  T *d_prediction, *d_target;
};

}  // namespace tinyops::balanced_l1
