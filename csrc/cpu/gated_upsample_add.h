// The CPU kernels of gated_upsample_add, one instantiation per instruction set and type.
// They work on a range of units, so that the caller decides on threads and scratch memory.
#pragma once
#include "../ops/gated_upsample_add.h"
#include "isa.h"

namespace tinyops::gated_upsample_add {

// How the work is cut: `rows` source rows (of high) at a time, all columns.
struct Blocks {
  int64_t rows, per_image;
};

// `stream` stores the widest output past the caches. NCHW units are (image, block, channel), so
// that neighbours share the gates of their block; NHWC units are (image, row of low).
template <Isa isa, typename T>
void forward(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& args, bool stream,
             int64_t begin, int64_t end, acc_t<T>* scratch);

// Units are (image, block). A unit owns its part of every gradient and adds up channels in order,
// so the result does not depend on the number of threads.
template <Isa isa, typename T>
void backward(const Problem& p, const Blocks& blocks, const BackwardArgs<T>& args, bool stream,
              int64_t begin, int64_t end, acc_t<T>* scratch);

// Scratch memory is cut into buffers that start on a cache line: a vector that straddles two lines
// cannot be forwarded from its store to the load that follows.
template <typename A>
TINYOPS_HD int64_t whole_lines(int64_t elements) {
  constexpr int64_t kLine = 64 / int64_t{sizeof(A)};
  return ceil_div(elements, kLine) * kLine;
}

// Elements of scratch memory that one call of either kernel needs: three lines, and planes of one
// block for the gates, the products with high and those with low.
template <typename A>
int64_t scratch_size(const Problem& p, const Blocks& b, bool backward) {
  if (p.channels_last) return backward ? whole_lines<A>(p.channels) : 0;
  const int64_t lines = whole_lines<A>(p.x.in) + 2 * whole_lines<A>(p.x.out);
  if (p.mode == Mode::kPlain) return lines;
  const int64_t rows = b.rows * ceil_div(p.y.out, p.y.in) + 1;
  const int64_t planes = !backward ? 1 : p.mode == Mode::kGated ? 2 : 3;
  return lines + planes * whole_lines<A>(rows * p.x.out);
}

}  // namespace tinyops::gated_upsample_add
