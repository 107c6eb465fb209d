// Stitching detections of overlapping tiles: where a tile lies, and which boxes it cuts. Shared by
// the CPU and CUDA kernels.
#pragma once
#include "boxes.h"

namespace tinyops::stitch_tiles {

struct Options {
  double iou_threshold, ios_threshold;
  double edge;  // pixels
  bool class_agnostic;
};

// The sides of a box that its tile may have cut off. Any of them: the box is truncated.
enum Side : uint8_t { kLeft = 1, kTop = 2, kRight = 4, kBottom = 8 };

// A tile as the pass over boxes needs it: its corner in the image, and the coordinates in the tile
// at or beyond which a side of a box counts as cut; infinite for the sides of the image, which cut
// nothing.
template <typename T>
struct Tile {
  T dx, dy;
  Box<T> inner;
};

// window: x1 y1 x2 y2 of the tile in its image; its right side is a side of the image where x2 is
// `width` or more, as in padded tiles.
template <typename T>
TINYOPS_HD Tile<T> make_tile(const Box<T>& window, T height, T width, T edge) {
  const T kNever = static_cast<T>(__builtin_huge_val());
  return {window.x1, window.y1,
          Box<T>{window.x1 > 0 ? edge : -kNever, window.y1 > 0 ? edge : -kNever,
                 window.x2 < width ? (window.x2 - window.x1) - edge : kNever,
                 window.y2 < height ? (window.y2 - window.y1) - edge : kNever}};
}

// The cut sides of a box in tile coordinates, as a sum of Side; 0: the box is whole.
template <typename T>
TINYOPS_HD uint8_t cut_sides(const Box<T>& box, const Tile<T>& tile) {
  return static_cast<uint8_t>(
      (box.x1 <= tile.inner.x1 ? kLeft : 0) | (box.y1 <= tile.inner.y1 ? kTop : 0) |
      (box.x2 >= tile.inner.x2 ? kRight : 0) | (box.y2 >= tile.inner.y2 ? kBottom : 0));
}

// From tile into image coordinates.
template <typename T>
TINYOPS_HD Box<T> shifted(const Box<T>& box, const Tile<T>& tile) {
  return {box.x1 + tile.dx, box.y1 + tile.dy, box.x2 + tile.dx, box.y2 + tile.dy};
}

// A row of image_sizes that is good: finite and at least 0.
template <typename T>
TINYOPS_HD bool is_size(T height, T width) {
  const T infinity = static_cast<T>(__builtin_huge_val());
  return height >= 0 && width >= 0 && height < infinity && width < infinity;
}

// Whether a kept box takes the place of one of another tile.
template <typename T>
TINYOPS_HD bool suppresses(const Box<T>& kept, const Box<T>& other, bool truncated,
                           const Options& o) {
  const T both = intersection(kept, other), kept_area = area(kept), other_area = area(other);
  const T iou = both / (kept_area + other_area - both);  // 0 / 0 is NaN: no overlap
  if (static_cast<double>(iou) > o.iou_threshold) return true;
  return truncated && static_cast<double>(both / smaller(kept_area, other_area)) > o.ios_threshold;
}

// An index from a tensor, made harmless for memory: without the value checks (check=False) ids that
// are out of range are read as the nearest one in it. n > 0.
TINYOPS_HD int32_t index_within(int64_t id, int64_t n) {
  return static_cast<int32_t>(id < 0 ? 0 : id < n ? id : n - 1);
}

}  // namespace tinyops::stitch_tiles
