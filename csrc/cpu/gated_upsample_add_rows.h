// Rows of gated_upsample_add on the CPU: what the forward and the backward kernels share. Upsampled
// rows, gates and sums live in scratch memory, where rows allow of the size of a cache, in the
// accumulation type.
#pragma once
#include "gated_upsample_add.h"
#include "simd.h"

namespace tinyops::gated_upsample_add {
namespace {

constexpr int kGroup = 4;  // channels that are worked on together

// The rows of low that read source rows [source_begin, source_end).
struct Rows {
  int32_t source_begin, source_end, begin, end;
};

Rows block_rows(const Problem& p, const Blocks& blocks, int64_t block) {
  const int64_t b = block * blocks.rows, e = b + blocks.rows;
  const int32_t sb = static_cast<int32_t>(b);
  const int32_t se = static_cast<int32_t>(e < p.y.in ? e : p.y.in);
  return {sb, se, p.y.first(sb), p.y.first(se)};
}

// One row of high, widened and repeated to the width of low. `line` holds x.in elements.
// The stores are as wide as the loads that follow them: narrower ones cannot be forwarded.
template <typename T, typename A>
void upsample_row(const NearestAxis& x, const T* row, A* line, A* up) {
  constexpr int L = kLanes<A>;
  if (x.doubles()) {
    int64_t j = 0;
    for (; j + L <= x.in; j += L) {
      const Vector<A> v = Wide<A>::load(row + j);
      Wide<A>::store(up + 2 * j, repeat_half<0, A>(v));
      Wide<A>::store(up + 2 * j + L, repeat_half<1, A>(v));
    }
    for (; j < x.in; ++j) up[2 * j] = up[2 * j + 1] = widen(row[j]);
    return;
  }
  A* wide = x.out == x.in ? up : line;
  for_lanes<A>(x.in, [&](auto lanes, int64_t j) { lanes.store(wide + j, lanes.load(row + j)); });
  if (x.out == x.in) return;
  for (int32_t d = 0; d < x.out; ++d) up[d] = line[x.source(d)];
}

// The sum over the columns that read one source column, narrowed.
template <typename T, typename A>
void downsample_row(const NearestAxis& x, const A* sums, T* row) {
  constexpr int L = kLanes<A>;
  if (x.doubles()) {
    int64_t j = 0;
    for (; j + L <= x.in; j += L)
      Wide<A>::store(row + j,
                     sum_pairs<A>(Wide<A>::load(sums + 2 * j), Wide<A>::load(sums + 2 * j + L)));
    for (; j < x.in; ++j) row[j] = narrow<T>(sums[2 * j] + sums[2 * j + 1]);
    return;
  }
  for (int32_t j = 0; j < x.in; ++j) {
    A total = 0;
    for (int32_t d = x.first(j); d < x.first(j + 1); ++d) total += sums[d];
    row[j] = narrow<T>(total);
  }
}

// gate = gate_low * up(gate_high) on the rows of one block.
template <typename T, typename A>
void fill_gates(const Problem& p, const Rows& r, const T* gate_low, const T* gate_high, A* line,
                A* up, A* gates) {
  int32_t last = -1;
  for (int32_t y = r.begin; y < r.end; ++y, gates += p.x.out) {
    const int32_t i = p.y.source(y);
    if (i != last) upsample_row(p.x, gate_high + static_cast<int64_t>(i) * p.x.in, line, up);
    last = i;
    const T* low = gate_low + static_cast<int64_t>(y) * p.x.out;
    for_lanes<A>(p.x.out, [&](auto lanes, int64_t x) {
      lanes.store(gates + x, lanes.load(low + x) * lanes.load(up + x));
    });
  }
}

// Streaming stores need every vector aligned: rows of whole vectors from an aligned start.
template <typename T>
bool can_stream(const Problem& p, const T* out) {
  const int64_t row = (p.channels_last ? p.channels : p.x.out) * int64_t{sizeof(T)};
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  return row % kBytes == 0 && reinterpret_cast<uintptr_t>(out) % kBytes == 0;
}

}  // namespace
}  // namespace tinyops::gated_upsample_add
