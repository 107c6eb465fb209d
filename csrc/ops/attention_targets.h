// The geometry of attention_targets, shared by CPU and CUDA: which pixels a box paints, with which
// sign, and which two pixels ("taps") of each axis a cell of a level is interpolated from.
#pragma once
#include <cmath>

#include "boxes.h"

namespace tinyops::attention_targets {

constexpr int kMaxLevels = 16;

// Rows t..d-1 and columns l..r-1 of an image.
struct Rect {
  int32_t l, t, r, d;

  TINYOPS_HD bool is_empty() const { return r <= l || d <= t; }
  TINYOPS_HD double size() const {
    return std::sqrt(static_cast<double>(int64_t{r - l} * int64_t{d - t}));
  }
};

// int(x) of the positive part of x, at most `most`.
template <typename T>
TINYOPS_HD int32_t round_down(T x, int32_t most) {
  const double v = static_cast<double>(x);
  return v > 0 ? (v < most ? static_cast<int32_t>(v) : most) : 0;
}
template <typename T>
TINYOPS_HD int32_t round_up(T x, int32_t most) {
  const int32_t down = round_down(x, most);
  return down < most && down < static_cast<double>(x) ? down + 1 : down;
}
// SSPNet's rounding: the far sides stay one pixel inside the image.
template <typename T>
TINYOPS_HD Rect rect_of(const Box<T>& b, int32_t height, int32_t width) {
  return {round_down(b.x1, width), round_down(b.y1, height), round_up(b.x2, width - 1),
          round_up(b.y2, height - 1)};
}

// The sizes, in pixels, that are positive at a level. The first level has no lower limit and the
// last no upper one; `strict` excludes the limits, also where they only part two positive ranges.
struct Band {
  double low, high;
  bool is_first, is_last, strict;

  TINYOPS_HD bool has(double size) const {
    if (strict)
      return (size > low && size < high) || (is_first && size < low) || (is_last && size > low);
    return (is_first || size >= low) && (is_last || size < high);
  }
};

// One axis of a bilinear resize with half-pixel centres from `in` to `out` <= in places: place k is
// at ((2k + 1) * in - out) / (2 * out), between pixel first(k) and the next.
struct Axis {
  int32_t in, out;

  struct Tap {
    int32_t first, second;
    float weight;  // of the second
  };
  TINYOPS_HD Tap tap(int32_t k) const {
    const int64_t at = (2 * int64_t{k} + 1) * in - out, step = 2 * int64_t{out};
    // Division of float64, put right in integers: one of int64 is a subroutine on a GPU.
    const double quotient = static_cast<double>(at) / static_cast<double>(step);
    int64_t first = static_cast<int64_t>(quotient), rest = at - first * step;
    if (rest < 0) first -= 1, rest += step;
    if (rest >= step) first += 1, rest -= step;
    const auto f = static_cast<int32_t>(first);
    return {f, f + 1 < in ? f + 1 : f,
            static_cast<float>(static_cast<double>(rest) / static_cast<double>(step))};
  }
};

// The index of the first of n rising values that is not below x.
TINYOPS_HD int32_t lower_bound(const int32_t* values, int32_t n, int32_t x) {
  int32_t begin = 0;
  while (n > 0) {
    const int32_t half = n / 2;
    const bool below = values[begin + half] < x;
    begin = below ? begin + half + 1 : begin;
    n = below ? n - half - 1 : half;
  }
  return begin;
}

// Taps a, b in the upper row and c, d in the lower.
TINYOPS_HD float interpolate(float a, float b, float c, float d, float right, float down) {
  const float upper = (1 - right) * a + right * b, lower = (1 - right) * c + right * d;
  return (1 - down) * upper + down * lower;
}

struct Level {
  Axis y, x;
  Band band;

  TINYOPS_HD int64_t cells() const { return int64_t{y.out} * x.out; }
};

}  // namespace tinyops::attention_targets
