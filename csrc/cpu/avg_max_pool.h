// The CPU kernels of avg_max_pool, one instantiation per instruction set and type.
// They work on a range of units, so that the caller decides on threads.
#pragma once
#include "../ops/avg_max_pool.h"
#include "isa.h"

namespace tinyops::avg_max_pool {

// NCHW: a unit is a plane, and gets its results at once.
template <Isa isa, typename T>
void pool_planes(const Problem& p, const ForwardArgs<T>& args, int64_t begin, int64_t end);

// NHWC: a unit is (image, part), a part being so many cells of the image, counted row by row in its
// valid extent. Blocks do not depend on the number of threads, and neither do the sums.
struct Parts {
  int64_t cells, per_image;
};
// What a unit leaves for each channel: [units, channels] each. `first` counts from the start of the
// part to the group of cells that holds the first maximum.
template <typename A>
struct Partials {
  A *sum, *max;
  int32_t* first;
};
constexpr int64_t kGroupCells = 16;

// `scratch` holds two rows of channels.
template <Isa isa, typename T>
void pool_parts(const Problem& p, const Parts& parts, const ForwardArgs<T>& args,
                const Partials<acc_t<T>>& partials, int64_t begin, int64_t end, acc_t<T>* scratch);
// Adds up the parts of the planes begin .. end - 1, counted as image * channels + channel.
template <Isa isa, typename T>
void join_parts(const Problem& p, const Parts& parts, const ForwardArgs<T>& args,
                const Partials<acc_t<T>>& partials, int64_t begin, int64_t end);

// `stream` stores past the caches. NCHW units are planes, NHWC units (image, part) of Parts.cells
// cells of the whole map.
template <Isa isa, typename T>
void backward(const Problem& p, const Parts& parts, const BackwardArgs<T>& args, bool stream,
              int64_t begin, int64_t end, T* line);

}  // namespace tinyops::avg_max_pool
