// concat = [leaky_relu(pixel_shuffle(content)), reference], add =
// leaky_relu(pixel_shuffle(content))
// + residual (EFPN eq. 3-4). Sizes and pointers of one problem, shared by CPU and CUDA kernels.
#pragma once
#include "../common.h"

namespace tinyops::pixel_shuffle {

// Which channel of content goes to channel c and sub-pixel k = r*(y%r) + x%r. Values are the codes
// of the schema.
enum class Order {
  kCrd = 0,  // c*r*r + k
  kDcr = 1,  // k*C + c
};

enum class Join { kConcat, kAdd };

struct Problem {
  int64_t images, channels;  // C: those of the shuffled content
  int64_t height, width;     // of content
  int64_t outer_channels;    // of the upscaled map, out or grad, of which the first C are shuffled
  int upscale;
  Order order;
  double negative_slope;  // 1: no activation
  bool channels_last;     // layout of every tensor

  TINYOPS_HD int64_t parts() const { return static_cast<int64_t>(upscale) * upscale; }
  TINYOPS_HD int64_t plane() const { return height * width; }          // of content
  TINYOPS_HD int64_t wide_plane() const { return parts() * plane(); }  // of the upscaled map
  TINYOPS_HD int64_t numel() const { return images * channels * wide_plane(); }  // of content
  // Channel c*channel_step() + k*part_step() of content.
  TINYOPS_HD int64_t channel_step() const { return order == Order::kCrd ? parts() : 1; }
  TINYOPS_HD int64_t part_step() const { return order == Order::kCrd ? 1 : channels; }
};

// other: what is joined to the shuffled content: concatenated, [N, outer_channels - C, rH, rW] or
// added, [N, C, rH, rW].
template <typename T>
struct ForwardArgs {
  const T *content, *other;
  T* out;
  Join join;
};

// content is null without an activation.
template <typename T>
struct BackwardArgs {
  const T *grad, *content;
  T* d_content;
};

}  // namespace tinyops::pixel_shuffle
