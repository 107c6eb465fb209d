// mean and maximum of each plane of a map, and where its maximum is      SR-TOD section 3.4, CBAM
// Sizes and pointers of one problem, shared by the CPU and CUDA kernels.
#pragma once
#include "valid.h"

namespace tinyops::avg_max_pool {

struct Problem {
  int64_t images, channels;
  int32_t height, width;
  bool channels_last;  // layout of features and of their gradient

  TINYOPS_HD int64_t plane() const { return static_cast<int64_t>(height) * width; }
  TINYOPS_HD int64_t planes() const { return images * channels; }
  TINYOPS_HD int64_t numel() const { return planes() * plane(); }
  TINYOPS_HD Extent extent(const int64_t* valid, int64_t image) const {
    return extent_of(valid, image, height, width);
  }
};

// mean, max and index are [N, C]. index counts cells of the plane row by row; an image without
// cells has mean 0, max 0 and index -1. valid may be null.
template <typename T>
struct ForwardArgs {
  const T* features;
  const int64_t* valid;
  T *mean, *max;
  int64_t* index;
};

template <typename T>
struct BackwardArgs {
  const T *d_mean, *d_max;
  const int64_t *index, *valid;
  T* d_features;
};

}  // namespace tinyops::avg_max_pool
