// The part of a padded map that counts: `valid` [N, 2] int64 holds height and width of each image
// in cells, from the upper left corner on. Values outside the map are cut to its size.
#pragma once
#include "../common.h"

namespace tinyops {

struct Extent {
  int32_t rows, columns;
  TINYOPS_HD int64_t cells() const { return static_cast<int64_t>(rows) * columns; }
};

TINYOPS_HD int32_t clamp_to(int64_t size, int32_t most) {
  return size < 0 ? 0 : size < most ? static_cast<int32_t>(size) : most;
}

// valid may be null: everything counts. An image without rows or columns has neither.
TINYOPS_HD Extent extent_of(const int64_t* valid, int64_t image, int32_t height, int32_t width) {
  if (valid == nullptr) return {height, width};
  const Extent e{clamp_to(valid[2 * image], height), clamp_to(valid[2 * image + 1], width)};
  return e.rows > 0 && e.columns > 0 ? e : Extent{0, 0};
}

}  // namespace tinyops
