// The argument checks of difference_gate, said once for every backend. The messages are those of
// `check_arguments` in tinyops/ops/difference_gate.py, which guards fake tensors and Triton.
#pragma once
#include "maps_check.h"
// after maps_check.h, which pins the ABI
#include <tuple>

#include "difference_gate.h"

namespace tinyops::difference_gate {

inline constexpr char kOp[] = "difference_gate", kName[] = "difference_gate: ";

// The mask may be decided in a wider type than that of the features.
inline void check_map_dtype(const Tensor& difference, const Tensor& features) {
  const ScalarType dtype = difference.scalar_type(), own = features.scalar_type();
  check(dtype == own || dtype == ScalarType::Float || dtype == ScalarType::Double, kName,
        "difference must be float32, float64 or ", dtype_text(own), " like features, got ",
        dtype_text(dtype));
}

// Checks the tensors of the forward and gives the sizes of the problem in the layout of features.
inline Problem check_forward(const Tensor& features, const Tensor& channel_weight,
                             const Tensor& difference, const Tensor& threshold, int64_t resize,
                             int64_t ste) {
  check_map(kOp, "features", features);
  check_map_like(kOp, "channel_weight", channel_weight, "features", features);
  const int64_t n = features.size(0), c = features.size(1), h = features.size(2);
  const int64_t w = features.size(3);
  check_map_size(kOp, "channel_weight", channel_weight, {n, c, 1, 1});
  check_rank(kOp, "difference", difference);
  check(difference.device() == features.device(), kName, "difference must be on ",
        device_text(features), " like features, got ", device_text(difference));
  check_map_dtype(difference, features);
  check(difference.size(0) == n && difference.size(1) == 1, kName, "difference must be [", n,
        ", 1, H, W], got ", shape_text(difference));
  const int64_t height = difference.size(2), width = difference.size(3);
  for (const int64_t size : {h, w, height, width})
    check(size < (int64_t{1} << 31), kName, "height and width must be below 2^31, got ", size);
  const auto divides = [](int64_t cells, int64_t pixels) {
    return cells == 0 ? pixels == 0 : pixels > 0 && pixels % cells == 0;
  };
  check(divides(h, height) && divides(w, width), kName,
        "height and width of difference must be multiples of ", h, "x", w, ", got ", height, "x",
        width);
  check(threshold.dim() == 0, kName, "threshold must have no dimensions, got ",
        shape_text(threshold));
  check(threshold.device() == features.device(), kName, "threshold must be on ",
        device_text(features), " like features, got ", device_text(threshold));
  check(threshold.scalar_type() == difference.scalar_type(), kName, "threshold must be ",
        dtype_text(difference.scalar_type()), " like difference, got ",
        dtype_text(threshold.scalar_type()));
  check(resize >= 0 && resize <= 2, kName, "resize must be 0, 1 or 2, got ", resize);
  check(ste == 0 || ste == 1, kName, "ste must be 0 or 1, got ", ste);
  const auto ratio = [](int64_t cells, int64_t pixels) {
    return static_cast<int32_t>(cells == 0 ? 1 : pixels / cells);
  };
  return {n,
          c,
          static_cast<int32_t>(h),
          static_cast<int32_t>(w),
          ratio(h, height),
          ratio(w, width),
          static_cast<Resize>(resize),
          layout_of(features) == MemoryFormat::ChannelsLast};
}

inline Problem check_backward(const Tensor& grad, const Tensor& features,
                              const Tensor& channel_weight, const Tensor& difference,
                              const Tensor& threshold, int64_t resize) {
  const Problem p = check_forward(features, channel_weight, difference, threshold, resize, 0);
  check_map_like(kOp, "grad", grad, "features", features);
  check_map_size(kOp, "grad", grad, {p.images, p.channels, p.height, p.width});
  return p;
}

inline MemoryFormat format_of(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Calls f with a zero of the type of the map, which is float, double or T.
template <typename T, typename F>
void for_map_dtype(ScalarType t, F&& f) {
  switch (t) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    default: return f(T{});
  }
}

// Which gradients the backward is asked for; those that it is not are empty.
struct Needs {
  bool features, channel_weight, difference, threshold;
  bool mask() const { return difference || threshold; }
};

// Owns the dense inputs of a call and the fresh outputs: `out` of the forward.
struct ForwardTensors {
  Tensor features, channel_weight, difference, out;

  ForwardTensors(const Problem& p, const Tensor& features_in, const Tensor& channel_weight_in,
                 const Tensor& difference_in)
      : features(to_layout(features_in, format_of(p))),
        channel_weight(to_layout(channel_weight_in, MemoryFormat::Contiguous)),
        difference(to_layout(difference_in, MemoryFormat::Contiguous)),
        out(empty_like_sized(features_in, {p.images, p.channels, p.height, p.width},
                             format_of(p))) {}
};

struct BackwardTensors {
  Tensor grad, features, channel_weight, difference;
  Tensor d_features, d_channel_weight, d_difference, d_threshold;

  BackwardTensors(const Problem& p, const Needs& needs, const Tensor& grad_in,
                  const Tensor& features_in, const Tensor& channel_weight_in,
                  const Tensor& difference_in, const Tensor& threshold)
      : grad(to_layout(grad_in, format_of(p))),
        features(to_layout(features_in, format_of(p))),
        channel_weight(to_layout(channel_weight_in, MemoryFormat::Contiguous)),
        difference(to_layout(difference_in, MemoryFormat::Contiguous)),
        d_features(needs.features
                       ? empty_like_sized(features_in, {p.images, p.channels, p.height, p.width},
                                          format_of(p))
                       : empty_like_sized(features_in, {0})),
        d_channel_weight(needs.channel_weight
                             ? empty_like_sized(features_in, {p.images, p.channels, 1, 1})
                             : empty_like_sized(features_in, {0})),
        d_difference(needs.difference
                         ? empty_like_sized(difference_in, {p.images, 1, difference_in.size(2),
                                                            difference_in.size(3)})
                         : empty_like_sized(difference_in, {0})),
        d_threshold(needs.threshold ? empty_like_sized(threshold, {})
                                    : empty_like_sized(threshold, {0})) {}

  // The sums of nothing: without images, channels or cells.
  void zero() const {
    for (Tensor d : {d_channel_weight, d_difference, d_threshold}) torch::stable::zero_(d);
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor> outputs() const {
    return {d_features, d_channel_weight, d_difference, d_threshold};
  }
};

}  // namespace tinyops::difference_gate
