// The CPU kernels of pixel_shuffle_concat and pixel_shuffle_add, one instantiation per instruction
// set and type. They work on a range of units, so that the caller decides on threads.
#pragma once
#include "../ops/pixel_shuffle.h"
#include "isa.h"

namespace tinyops::pixel_shuffle {

// `stream` writes past the caches. A unit is what comes from one row of content: in NCHW `upscale`
// rows of one plane of the output (image, channel, row), in NHWC as many of all channels (image,
// row). An output that is concatenated has units for the channels that are copied, too.
template <Isa isa, typename T>
void forward(const Problem& p, const ForwardArgs<T>& args, bool stream, int64_t begin, int64_t end);

// A unit is (image, shuffled channel, row) or, in NHWC, (image, row) of d_content.
template <Isa isa, typename T>
void backward(const Problem& p, const BackwardArgs<T>& args, bool stream, int64_t begin,
              int64_t end);

}  // namespace tinyops::pixel_shuffle
