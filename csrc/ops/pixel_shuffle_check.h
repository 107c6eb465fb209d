// The argument checks of pixel_shuffle_concat and pixel_shuffle_add, said once for every backend.
// The messages are those of `check_arguments` in tinyops/ops/pixel_shuffle.py.
#pragma once
#include "maps_check.h"
// after maps_check.h, which pins the ABI
#include <cfloat>
#include <cmath>
#include <limits>

#include "pixel_shuffle.h"

namespace tinyops::pixel_shuffle {

inline const char* name_of(Join join) {
  return join == Join::kAdd ? "pixel_shuffle_add" : "pixel_shuffle_concat";
}

inline void check_options(const char* op, int64_t upscale, double negative_slope, int64_t order) {
  check(upscale >= 2 && upscale <= 4, op, ": upscale must be 2, 3 or 4, got ", upscale);
  const bool is_nan = negative_slope != negative_slope;  // whose sign means nothing
  check(std::abs(negative_slope) <= double{FLT_MAX}, op,
        ": negative_slope must be finite in float32, got ",
        is_nan ? std::numeric_limits<double>::quiet_NaN() : negative_slope);
  check(order == 0 || order == 1, op, ": order must be 0 (crd) or 1 (dcr), got ", order);
}

inline Problem check_forward(Join join, const Tensor& content, const Tensor& other, int64_t upscale,
                             double negative_slope, int64_t order) {
  const bool add = join == Join::kAdd;
  const char *op = name_of(join), *name = add ? "residual" : "reference";
  check_map(op, "content", content);
  check_options(op, upscale, negative_slope, order);
  const int64_t n = content.size(0), parts = upscale * upscale, c = content.size(1) / parts;
  check(content.size(1) % parts == 0, op, ": content must have a multiple of ", parts,
        " channels for upscale=", upscale, ", got ", shape_text(content));
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  for (const int d : {2, 3})
    check(content.size(d) <= kMost / upscale, op,
          ": height and width of content must be below 2^31 / upscale, got ", content.size(d));
  check_map_like(op, name, other, "content", content);
  const int64_t height = upscale * content.size(2), width = upscale * content.size(3);
  if (add)
    check_map_size(op, name, other, {n, c, height, width});
  else
    check(other.size(0) == n && other.size(2) == height && other.size(3) == width, op, ": ", name,
          " must be [", n, ", R, ", height, ", ", width, "], got ", shape_text(other));
  return {n,
          c,
          content.size(2),
          content.size(3),
          add ? c : c + other.size(1),
          static_cast<int>(upscale),
          static_cast<Order>(order),
          negative_slope,
          layout_of(content) == MemoryFormat::ChannelsLast};
}

// grad is that of the whole output, of which the first `channels` channels are read.
inline Problem check_backward(const Tensor& grad, const OptionalTensor& content, int64_t channels,
                              int64_t upscale, double negative_slope, int64_t order) {
  const char* op = "pixel_shuffle";
  check_map(op, "grad", grad);
  check_options(op, upscale, negative_slope, order);
  check(channels >= 0 && channels <= grad.size(1), op, ": channels must be 0 to ", grad.size(1),
        ", got ", channels);
  const int64_t height = grad.size(2) / upscale, width = grad.size(3) / upscale;
  check(grad.size(2) % upscale == 0 && grad.size(3) % upscale == 0, op,
        ": height and width of grad must be multiples of ", upscale, ", got ", shape_text(grad));
  check(content.has_value() == (negative_slope != 1), op,
        ": the backward needs content with negative_slope other than 1 and only then");
  if (content) {
    check_map_like(op, "content", *content, "grad", grad);
    check_map_size(op, "content", *content,
                   {grad.size(0), channels * upscale * upscale, height, width});
  }
  // A gradient that is dense in neither layout (an expanded one, say) is copied to that of content.
  const Tensor& leader = has_layout(grad, layout_of(grad)) || !content ? grad : *content;
  return {grad.size(0),
          channels,
          height,
          width,
          has_layout(grad, layout_of(grad)) ? grad.size(1) : channels,
          static_cast<int>(upscale),
          static_cast<Order>(order),
          negative_slope,
          layout_of(leader) == MemoryFormat::ChannelsLast};
}

inline MemoryFormat format_of(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Owns the dense inputs and the output of one call of the forward.
struct ForwardTensors {
  Tensor content, other, out;
  Join join;

  ForwardTensors(Join joined, const Problem& p, const Tensor& content_in, const Tensor& other_in)
      : content(to_layout(content_in, format_of(p))),
        other(to_layout(other_in, format_of(p))),
        out(empty_like_sized(
            content, {p.images, p.outer_channels, p.upscale * p.height, p.upscale * p.width},
            format_of(p))),
        join(joined) {}

  template <typename T>
  ForwardArgs<T> args() const {
    return {data<T>(content), data<T>(other), mutable_data<T>(out), join};
  }
};

// Owns the dense inputs and the fresh output of one call of the backward.
struct BackwardTensors {
  Tensor grad, d_content;
  OptionalTensor content;

  BackwardTensors(const Problem& p, const Tensor& grad_in, const OptionalTensor& content_in)
      : grad(to_layout(needed_part(p, grad_in), format_of(p))),
        d_content(empty_like_sized(grad, {p.images, p.channels * p.parts(), p.height, p.width},
                                   format_of(p))),
        content(to_layout(content_in, format_of(p))) {}

  template <typename T>
  BackwardArgs<T> args() const {
    return {data<T>(grad), data<T>(content), mutable_data<T>(d_content)};
  }

 private:
  // Of a gradient that has to be copied, only the channels that are read.
  static Tensor needed_part(const Problem& p, Tensor grad) {
    return p.outer_channels == grad.size(1) ? grad : torch::stable::narrow(grad, 1, 0, p.channels);
  }
};

}  // namespace tinyops::pixel_shuffle
