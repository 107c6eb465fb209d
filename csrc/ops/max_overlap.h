// The overlap of a box and a target in eight modes, shared by the CPU and CUDA kernels of
// max_overlap and topk_per_target.
//
// What depends on one side alone is worked out once, in a Side; key() does the rest for a pair. It
// is written for numbers and for GCC's vectors of them. Keys order pairs as their overlaps do:
//   nwd       minus the squared Wasserstein distance, so that no exponential is taken per pair and
//             pairs whose exponential is 0 still have an order
//   the rest  the overlap itself
// Nothing here is left to a mathematical library, so keys and overlaps have the same bits on every
// device.
#pragma once
#include <cmath>
#include <type_traits>

#include "boxes.h"
#include "exact_math.h"

namespace tinyops::max_overlap {

enum class Mode : int {
  kIou = 0,        // intersection / union
  kIofTarget = 1,  // intersection / area of the target
  kIofBox = 2,     // intersection / area of the box
  kIos = 3,        // intersection / smaller area
  kGiou = 4,       // IoU - (hull - union) / hull            Rezatofighi et al. 2019
  kNwd = 5,        // exp(-sqrt(W) / kNwdConstant)           Wang et al. 2021, eq. 8
  kRfdKl = 6,      // 1 / (1 + KL divergence)                Xu et al. 2022 (RFLA), eq. 6-7
  kRfdW = 7,       // 1 / (1 + W)                            ibid.
};
inline constexpr int kModes = 8;
// W is the squared 2-Wasserstein distance of the Gaussians that boxes stand for:
// dx^2 + dy^2 + ((w - w')^2 + (h - h')^2) / 4, of centres and sizes.

// Pixels; the mean size of the objects of AI-TOD, as in the paper.
inline constexpr double kNwdConstant = 12.8;

// Whether only boxes that intersect overlap by more than 0.
TINYOPS_HD constexpr bool is_local(Mode mode) {
  return mode <= Mode::kIos;
}

// What a pair without overlap and a box without target have as their value.
template <typename T>
TINYOPS_HD constexpr T no_value(Mode mode) {
  return mode == Mode::kGiou ? -static_cast<T>(__builtin_huge_val()) : T(0);
}
// No key is below.
template <typename T>
TINYOPS_HD constexpr T lowest_key(Mode mode) {
  return mode == Mode::kGiou || mode == Mode::kNwd ? -static_cast<T>(__builtin_huge_val()) : T(0);
}

// Corners and area, or in the last three modes centre, size and ln(w * h). Of a target in kRfdKl
// the size is its reciprocal. V is a number or a vector of them.
template <typename V>
struct Side {
  V a, b, c, d, e;
};

template <Mode kMode, bool kTarget, typename T>
TINYOPS_HD Side<T> side_of(const Box<T>& box) {
  if constexpr (kMode <= Mode::kGiou) {
    return {box.x1, box.y1, box.x2, box.y2, area(box)};
  } else {
    const T w = box.x2 - box.x1, h = box.y2 - box.y1;
    const T x = T(0.5) * (box.x1 + box.x2), y = T(0.5) * (box.y1 + box.y2);
    if constexpr (kMode == Mode::kRfdKl) {
      const T log_area =
          static_cast<T>(exact::log(static_cast<double>(w) * static_cast<double>(h)));
      if constexpr (kTarget) return {x, y, T(1) / w, T(1) / h, log_area};
      return {x, y, w, h, log_area};
    }
    return {x, y, w, h, T(0)};
  }
}

// 0/0, of zero areas, counts as 0; so does what overflows.
template <typename V>
TINYOPS_HD V quotient(V a, V b) {
  const V q = a / b;
  return q == q ? q : V{};
}

template <typename V>
TINYOPS_HD V overlap_area(const Side<V>& box, const Side<V>& target) {
  const V width = smaller(box.c, target.c) - larger(box.a, target.a);
  const V height = smaller(box.d, target.d) - larger(box.b, target.b);
  return larger(width, V{}) * larger(height, V{});
}

// The key from the intersection, in the modes that have one. The order of the operations is that
// of torchvision.ops.box_iou and generalized_box_iou.
template <Mode kMode, typename V>
TINYOPS_HD V key_of_intersection(V in, const Side<V>& box, const Side<V>& target) {
  if constexpr (kMode == Mode::kIofTarget) return quotient(in, target.e);
  if constexpr (kMode == Mode::kIofBox) return quotient(in, box.e);
  if constexpr (kMode == Mode::kIos) return quotient(in, smaller(box.e, target.e));
  const V all = box.e + target.e - in, iou = quotient(in, all);
  if constexpr (kMode == Mode::kIou) return iou;
  const V width = larger(box.c, target.c) - smaller(box.a, target.a);
  const V height = larger(box.d, target.d) - smaller(box.b, target.b);
  const V hull = larger(width, V{}) * larger(height, V{});
  return iou - quotient(hull - all, hull);
}

template <typename T, Mode kMode, typename V>
TINYOPS_HD V key(const Side<V>& box, const Side<V>& target) {
  constexpr T kInfinity = static_cast<T>(__builtin_huge_val());
  if constexpr (kMode <= Mode::kGiou) {
    return key_of_intersection<kMode>(overlap_area(box, target), box, target);
  } else {
    const V dx = box.a - target.a, dy = box.b - target.b;
    if constexpr (kMode == Mode::kRfdKl) {
      const V w = box.c * target.c, h = box.d * target.d, x = dx * target.c, y = dy * target.d;
      const V spread = T(0.5) * (w * w + h * h), shift = T(2) * (x * x + y * y);
      const V kl = spread + shift + (target.e - box.e) - T(1);
      // A box without width is at an infinite distance, or at none that is defined.
      const V score = T(1) / (T(1) + larger(kl, V{}));
      return kl < V{} + kInfinity ? score : V{};
    } else {
      const V dw = box.c - target.c, dh = box.d - target.d;
      const V distance = dx * dx + dy * dy + T(0.25) * (dw * dw + dh * dh);
      if constexpr (kMode == Mode::kNwd) return distance == distance ? -distance : V{} - kInfinity;
      const V score = T(1) / (T(1) + distance);
      return score == score ? score : V{};
    }
  }
}

template <typename T>
TINYOPS_HD T value_of_key(Mode mode, T key) {
  if (mode != Mode::kNwd) return key;
  return static_cast<T>(exact::exp_minus(sqrt(static_cast<double>(-key)) / kNwdConstant));
}

// Calls f with the mode as a compile-time constant.
template <typename F>
decltype(auto) for_mode(Mode mode, F&& f) {
  switch (mode) {
    case Mode::kIofTarget: return f(std::integral_constant<Mode, Mode::kIofTarget>{});
    case Mode::kIofBox: return f(std::integral_constant<Mode, Mode::kIofBox>{});
    case Mode::kIos: return f(std::integral_constant<Mode, Mode::kIos>{});
    case Mode::kGiou: return f(std::integral_constant<Mode, Mode::kGiou>{});
    case Mode::kNwd: return f(std::integral_constant<Mode, Mode::kNwd>{});
    case Mode::kRfdKl: return f(std::integral_constant<Mode, Mode::kRfdKl>{});
    case Mode::kRfdW: return f(std::integral_constant<Mode, Mode::kRfdW>{});
    default: return f(std::integral_constant<Mode, Mode::kIou>{});
  }
}

// k boxes and m targets, contiguous. Image ids: both or none. A target whose mask is false is not
// there.
template <typename T>
struct Problem {
  Mode mode;
  int64_t k, m;
  const Box<T>*boxes, *targets;
  const bool* target_mask;
  const int64_t *image_ids, *target_image_ids;
};

}  // namespace tinyops::max_overlap
