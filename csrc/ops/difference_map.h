// out = mean over channels of |reconstruction - image|, 0 outside the valid part      SR-TOD eq. 3
// Sizes and pointers of one problem, shared by the CPU and CUDA kernels.
#pragma once
#include "valid.h"

namespace tinyops::difference_map {

struct Problem {
  int64_t images, channels;
  int32_t height, width;
  bool
      channels_last;  // layout of every [N, C, H, W] tensor; maps of one channel are planes in both

  TINYOPS_HD int64_t plane() const { return static_cast<int64_t>(height) * width; }
};

// valid may be null, see valid.h.
template <typename T>
struct ForwardArgs {
  const T *reconstruction, *image;
  const int64_t* valid;
  T* out;
};

// grad has one channel, d_reconstruction has all.
template <typename T>
struct BackwardArgs {
  const T *grad, *reconstruction, *image;
  const int64_t* valid;
  T* d_reconstruction;
};

}  // namespace tinyops::difference_map
