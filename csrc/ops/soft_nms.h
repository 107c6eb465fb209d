// Soft-NMS (Bodla et al. 2017): how much a kept box takes from the score of one that it overlaps.
// CPU and CUDA kernels share this arithmetic, so that scores have the same bits on both.
#pragma once
#include <cstring>

#include "boxes.h"

namespace tinyops::soft_nms {

enum class Method : int {
  kLinear = 0,    // iou > iou_threshold: score *= 1 - iou
  kGaussian = 1,  // iou > 0: score *= exp(-iou^2 / sigma)
};

struct Options {
  double iou_threshold;  // kLinear
  double sigma;          // kGaussian
  double min_score;
  Method method;
};

// Intersection over union, as nms. 0 / 0 and inf / inf are NaN, which overlaps nothing.
template <typename T>
TINYOPS_HD T iou(const Box<T>& a, const Box<T>& b) {
  const T both = intersection(a, b);
  return both / (area(a) + area(b) - both);
}

// exp(x) for x <= 0 to about one unit in the last place; 0 below e^-708, where results would be
// denormal. Not the exp of <cmath>: that has other bits in every C library and on the GPU.
TINYOPS_HD double exp_of_negative(double x) {
  if (!(x > -708.0)) return 0.0;
  const int power = static_cast<int>(x * 1.4426950408889634 - 0.5);  // nearest, as x <= 0
  // ln 2 in two parts; the first has 32 bits, so that its product with `power` is exact.
  const double r = (x - power * 6.93147180369123816490e-01) - power * 1.90821492927058770002e-10;
  // The Taylor series to r^13 for |r| <= ln(2) / 2: the next term is below 2^-57.
  double sum = 1.0 / 6227020800.0;
  sum = sum * r + 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  const int64_t bits = static_cast<int64_t>(power + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof(scale));
  return sum * scale;
}

// Whether a kept box with this overlap takes from the score at all.
template <typename T>
TINYOPS_HD bool decays(T overlap, const Options& o) {
  return static_cast<double>(overlap) > (o.method == Method::kLinear ? o.iou_threshold : 0.0);
}

// The factor for a pair that decays(): in float64, rounded once to the type S of the scores.
template <typename S, typename T>
TINYOPS_HD S factor(T overlap, const Options& o) {
  const double x = static_cast<double>(overlap);
  if (o.method == Method::kLinear) return static_cast<S>(1.0 - x);
  return static_cast<S>(exp_of_negative(-(x * x) / o.sigma));
}

// score * factor; an infinite score does not become NaN where the factor is 0.
template <typename S>
TINYOPS_HD S decayed(S score, S factor) {
  return factor == S(0) ? S(0) : score * factor;
}

// Whether a box is still in the game. Not `!(score < min_score)`: NaN (check=False) must go.
template <typename S>
TINYOPS_HD bool is_alive(S score, const Options& o) {
  return score >= static_cast<S>(o.min_score);
}

}  // namespace tinyops::soft_nms
