// Detections of tiles, placed in their images: what stitch_tiles and its union form work on.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "../ops/stitch_tiles.h"

namespace tinyops::stitch_tiles {

template <typename T>
struct Placed {
  int64_t n;
  std::unique_ptr<Box<T>[]> boxes;       // in image coordinates
  std::unique_ptr<uint8_t[]> cut;        // sums of Side
  std::unique_ptr<uint8_t[]> truncated;  // cut != 0
  std::unique_ptr<int32_t[]> tiles;
  std::unique_ptr<int64_t[]> images;  // null: one image
  const int64_t* labels;              // null: class-agnostic

  explicit Placed(int64_t count, bool several_images, const int64_t* classes)
      : n(count),
        boxes(std::make_unique_for_overwrite<Box<T>[]>(count)),
        cut(std::make_unique_for_overwrite<uint8_t[]>(count)),
        truncated(std::make_unique_for_overwrite<uint8_t[]>(count)),
        tiles(std::make_unique_for_overwrite<int32_t[]>(count)),
        images(several_images ? std::make_unique_for_overwrite<int64_t[]>(count) : nullptr),
        labels(classes) {}
};

// Boxes of the result, and the input box that each has its score and label from.
template <typename T>
struct Union {
  std::vector<Box<T>> boxes;
  std::vector<int64_t> keep;
};

// order: [n], whole boxes before truncated ones, each best first. kept_whole: the whole boxes that
// survive among themselves, best first.
template <typename T>
Union<T> unite(const Placed<T>& p, const Options& o, const int32_t* order,
               std::vector<int64_t> kept_whole);

}  // namespace tinyops::stitch_tiles
