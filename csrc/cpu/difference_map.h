// The CPU kernels of difference_map, one instantiation per instruction set and type. They work on a
// range of rows (image, y), so that the caller decides on threads.
#pragma once
#include "../ops/difference_map.h"
#include "isa.h"

namespace tinyops::difference_map {

template <Isa isa, typename T>
void forward(const Problem& p, const ForwardArgs<T>& args, int64_t begin, int64_t end);

// `stream` stores past the caches.
template <Isa isa, typename T>
void backward(const Problem& p, const BackwardArgs<T>& args, bool stream, int64_t begin,
              int64_t end);

}  // namespace tinyops::difference_map
