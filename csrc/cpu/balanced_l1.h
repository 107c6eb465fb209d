// The CPU kernels of balanced_l1, one instantiation per instruction set and type.
// They work on a range of units, so that the caller decides on threads.
#pragma once
#include "../ops/balanced_l1.h"
#include "isa.h"

namespace tinyops::balanced_l1 {

// A unit is (plane, part) in NCHW and (image, part) in NHWC, a part being so many cells. It does
// not depend on the number of threads, and neither do the sums.
struct Parts {
  int64_t cells, per_plane;
};

struct Sum2 {
  double total, positive;
};

template <Isa isa, typename T>
void sums(const Problem& p, const Parts& parts, const ForwardArgs<T>& args, Sum2* of_units,
          int64_t begin, int64_t end);

// `stream` stores the gradients past the caches.
template <Isa isa, typename T>
void backward(const Problem& p, const Parts& parts, const BackwardArgs<T>& args, bool stream,
              int64_t begin, int64_t end);

}  // namespace tinyops::balanced_l1
