// Soft-NMS (Bodla et al. 2017): how much a kept box takes from the score of one that it overlaps.
// CPU and CUDA kernels share this arithmetic, so that scores have the same bits on both.
#pragma once
#include "boxes.h"
#include "exact_math.h"

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
  return static_cast<S>(exact::exp_minus(x * x / o.sigma));
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
