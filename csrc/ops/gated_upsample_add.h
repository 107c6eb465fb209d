// out = (1 + s*gate_low) * low + gate_low * up(gate_high) * up(high)      SSPNet eq. 2-3
// Sizes and pointers of one problem, shared by the CPU and CUDA kernels.
#pragma once
#include "nearest.h"

namespace tinyops::gated_upsample_add {

enum class Mode {
  kPlain,      // no gates: low + up(high)
  kGated,      // s = 0
  kSelfGated,  // s = 1
};

struct Problem {
  int64_t images, channels;
  NearestAxis y, x;  // out: height and width of low; in: of high
  Mode mode;
  bool channels_last;  // layout of every [N, C, ., .] tensor; gates are planes in both

  TINYOPS_HD int64_t low_plane() const { return static_cast<int64_t>(y.out) * x.out; }
  TINYOPS_HD int64_t high_plane() const { return static_cast<int64_t>(y.in) * x.in; }
  TINYOPS_HD int64_t low_numel() const { return images * channels * low_plane(); }
};

// Gates are null in Mode::kPlain. `out` may be `low` itself.
template <typename T>
struct ForwardArgs {
  const T *low, *high, *gate_low, *gate_high;
  T* out;
};

// low and d_low are null unless Mode::kSelfGated; high and all gates are null in Mode::kPlain.
template <typename T>
struct BackwardArgs {
  const T *grad, *low, *high, *gate_low, *gate_high;
  T *d_low, *d_high, *d_gate_low, *d_gate_high;
};

}  // namespace tinyops::gated_upsample_add
