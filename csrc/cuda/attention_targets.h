// Launchers of attention_targets on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include "../ops/attention_targets.h"

namespace tinyops::attention_targets {

// One level and its memory. A pixel of the canvas is 0, or twice the number of the box that painted
// it (from 1), plus 1 where the level is the box's own: the last box has the highest value.
struct Canvas {
  Level level;
  int32_t* rows;     // [2h] taps of the vertical axis, rising
  int32_t* columns;  // [2w]
  uint32_t* pixels;  // [N, 2h, 2w], zeroed
  float* map;        // [N, h, w]
};
struct Canvases {
  Canvas canvas[kMaxLevels];
  int32_t count;
};

template <typename T>
struct Input {
  const Box<T>* boxes;       // [n]
  const int64_t* image_ids;  // [n]
  int32_t n, images, height, width;
};

// Writes ~k to *result, if that is more, for the first k whose image id is out of range.
cudaError_t check_images_cuda(const int64_t* image_ids, int64_t n, int64_t images,
                              unsigned long long* result, cudaStream_t stream);

template <typename T>
cudaError_t draw_cuda(const Input<T>& input, const Canvases& canvases, cudaStream_t stream);

}  // namespace tinyops::attention_targets
