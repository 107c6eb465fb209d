#include "../ops/attention_targets_check.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "boxes.h"

namespace tinyops::attention_targets {
namespace {

// Cells below which another thread does not pay.
constexpr int64_t kGrain = 32768;

struct Painted {
  Rect rect;
  double size;
};

// What the boxes paint, image after image, each in the order of the boxes.
struct Paintings {
  std::vector<Painted> list;
  std::vector<int64_t> begin;  // [images + 1]
};

template <typename T>
Paintings sort_by_image(const Problem& p, const Box<T>* boxes, const int64_t* image_ids) {
  Paintings result{{}, std::vector<int64_t>(static_cast<size_t>(p.images) + 1)};
  // The lists' ends, counted first, become their beginnings.
  std::vector<Rect> rects(static_cast<size_t>(p.boxes));
  const auto image_of = [&](int64_t k) -> int64_t {  // -1: paints nothing
    const int64_t id = image_ids[k];
    return id >= 0 && id < p.images && !rects[static_cast<size_t>(k)].is_empty() ? id : -1;
  };
  for (int64_t k = 0; k < p.boxes; ++k) {
    rects[static_cast<size_t>(k)] = rect_of(boxes[k], p.height, p.width);
    if (const int64_t id = image_of(k); id >= 0) ++result.begin[static_cast<size_t>(id)];
  }
  int64_t total = 0;
  for (int64_t& n : result.begin) n = total += n;
  result.list.resize(static_cast<size_t>(total));
  for (int64_t k = p.boxes - 1; k >= 0; --k) {
    const int64_t id = image_of(k);
    if (id < 0) continue;
    const Rect& rect = rects[static_cast<size_t>(k)];
    result.list[static_cast<size_t>(--result.begin[static_cast<size_t>(id)])] = {rect, rect.size()};
  }
  return result;
}

// The taps of an axis: `pixel` [2 * out] rises, `weight` [out] is that of every second one.
struct Taps {
  explicit Taps(const Axis& axis) : pixel(2 * static_cast<size_t>(axis.out)) {
    weight.reserve(static_cast<size_t>(axis.out));
    for (int32_t k = 0; k < axis.out; ++k) {
      const Axis::Tap tap = axis.tap(k);
      pixel[2 * static_cast<size_t>(k)] = tap.first;
      pixel[2 * static_cast<size_t>(k) + 1] = tap.second;
      weight.push_back(tap.weight);
    }
  }
  int32_t from(int32_t x) const {
    return lower_bound(pixel.data(), static_cast<int32_t>(pixel.size()), x);
  }
  std::vector<int32_t> pixel;
  std::vector<float> weight;
};

// The pixels that the cells of one level of one image are interpolated from: 1, 0 or -1.
struct Canvas {
  Taps y, x;
  std::vector<int8_t> pixels;    // [2h, 2w]
  std::vector<uint8_t> touched;  // [2h] rows

  explicit Canvas(const Level& level)
      : y(level.y), x(level.x), pixels(y.pixel.size() * x.pixel.size()), touched(y.pixel.size()) {}

  void clear() {
    for (size_t row = 0; row < touched.size(); ++row)
      if (touched[row]) std::memset(&pixels[row * x.pixel.size()], 0, x.pixel.size());
    std::fill(touched.begin(), touched.end(), uint8_t{0});
  }
  void paint(const Rect& rect, int8_t sign) {
    const auto left = static_cast<size_t>(x.from(rect.l)),
               right = static_cast<size_t>(x.from(rect.r));
    if (left == right) return;
    const auto end = static_cast<size_t>(y.from(rect.d));
    for (auto row = static_cast<size_t>(y.from(rect.t)); row < end; ++row) {
      std::memset(&pixels[row * x.pixel.size() + left], sign, right - left);
      touched[row] = 1;
    }
  }
  void shrink(float* out) const {
    const size_t width = x.weight.size();
    for (size_t row = 0; row < y.weight.size(); ++row, out += width) {
      if (!touched[2 * row] && !touched[2 * row + 1]) {
        std::fill(out, out + width, 0.0f);
        continue;
      }
      const int8_t* const upper = &pixels[2 * row * x.pixel.size()];
      const int8_t* const lower = upper + x.pixel.size();
      for (size_t k = 0; k < width; ++k)
        out[k] = interpolate(upper[2 * k], upper[2 * k + 1], lower[2 * k], lower[2 * k + 1],
                             x.weight[k], y.weight[row]);
    }
  }
};

void draw(const Level& level, const Paintings& paintings, int64_t images, float* map) {
  const int64_t grain = std::max<int64_t>(1, kGrain / level.cells());
  torch::stable::parallel_for(0, images, grain, [&](int64_t begin, int64_t end) {
    Canvas canvas(level);
    for (int64_t image = begin; image < end; ++image) {
      const auto first = static_cast<size_t>(paintings.begin[static_cast<size_t>(image)]);
      const auto last = static_cast<size_t>(paintings.begin[static_cast<size_t>(image) + 1]);
      for (size_t k = first; k < last; ++k) {
        const Painted& painted = paintings.list[k];
        canvas.paint(painted.rect, level.band.has(painted.size) ? 1 : -1);
      }
      canvas.shrink(map + image * level.cells());
      canvas.clear();
    }
  });
}

std::vector<Tensor> attention_targets_cpu(const Tensor& boxes, const Tensor& image_ids,
                                          int64_t images, int64_t height, int64_t width,
                                          std::vector<int64_t> strides, std::vector<double> bands,
                                          bool strict, bool check_values) {
  const Problem p =
      check_arguments(boxes, image_ids, images, height, width, strides, bands, strict);
  const Tensor own_boxes = to_compute(boxes), own_ids = to_contiguous(image_ids);
  const auto* ids = data<int64_t>(own_ids);
  const Paintings paintings = for_compute_dtype(own_boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (check_values) {
      check_box_values_cpu(kName, "boxes", data<Box<T>>(own_boxes), p.boxes);
      for (int64_t k = 0; k < p.boxes; ++k)
        if (ids[k] < 0 || ids[k] >= images) refuse_image(ids[k], images, k);
    }
    return sort_by_image(p, data<Box<T>>(own_boxes), ids);
  });
  const std::vector<Tensor> maps = allocate(p, boxes);
  for (size_t k = 0; k < maps.size(); ++k)
    if (maps[k].numel() > 0) draw(p.levels[k], paintings, images, mutable_data<float>(maps[k]));
  return maps;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("attention_targets", TORCH_BOX(&attention_targets_cpu));
}

}  // namespace tinyops::attention_targets
