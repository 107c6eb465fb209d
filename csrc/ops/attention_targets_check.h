// The argument checks of attention_targets, said once for every backend.
// tinyops/ops/attention_targets.py says the same to the fake kernel.
#pragma once
#include "boxes_check.h"
// after boxes_check.h, which pins the ABI
#include <vector>

#include "attention_targets.h"

namespace tinyops::attention_targets {

inline constexpr char kName[] = "attention_targets";

struct Problem {
  int64_t boxes, images;
  int32_t height, width;
  std::vector<Level> levels;
};

inline Problem check_arguments(const Tensor& boxes, const Tensor& image_ids, int64_t images,
                               int64_t height, int64_t width, const std::vector<int64_t>& strides,
                               const std::vector<double>& bands, bool strict) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  Problem p{check_boxes(kName, "boxes", boxes), images, 0, 0, {}};
  check_ids(kName, "image_ids", image_ids, "boxes", boxes);
  for (const int64_t n : {images, height, width})
    check(n >= 0 && n <= kMost, kName,
          ": sizes must be images, height and width of at least 0 and below 2^31, got ", n);
  p.height = static_cast<int32_t>(height);
  p.width = static_cast<int32_t>(width);
  const size_t count = strides.size();
  check(count >= 1 && count <= kMaxLevels, kName, ": strides must be from 1 to ", kMaxLevels,
        " numbers, got ", count);
  check(bands.size() == 2 * count, kName, ": bands must be 2 numbers for each of ", count,
        " strides, got ", bands.size());
  for (size_t k = 0; k < count; ++k) {
    check(strides[k] >= 1 && strides[k] <= kMost, kName,
          ": strides must be at least 1 and below 2^31, got ", strides[k]);
    const double low = bands[2 * k], high = bands[2 * k + 1];
    check(low <= high, kName, ": bands must be (low, high) with low <= high, got (", low, ", ",
          high, ")");
    const auto cells = [&](int32_t pixels) {
      return static_cast<int32_t>(ceil_div(pixels, strides[k]));
    };
    p.levels.push_back({{p.height, cells(p.height)},
                        {p.width, cells(p.width)},
                        {low, high, k == 0, k + 1 == count, strict}});
  }
  return p;
}

inline std::vector<Tensor> allocate(const Problem& p, const Tensor& like) {
  std::vector<Tensor> maps;
  for (const Level& level : p.levels)
    maps.push_back(empty_on(like, ScalarType::Float, {p.images, 1, level.y.out, level.x.out}));
  return maps;
}

[[noreturn]] inline void refuse_image(int64_t id, int64_t images, int64_t index) {
  check(false, kName, ": image_ids must be at least 0 and below ", images, ", got ", id,
        " at index ", index);
  __builtin_unreachable();
}

}  // namespace tinyops::attention_targets
