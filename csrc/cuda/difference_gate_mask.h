// Masks of cells from the map, for the kernels of difference_gate.
#pragma once
#include "difference_gate.h"
#include "launch.h"

namespace tinyops::difference_gate {
namespace {

// Index of the first map pixel of a cell inside its image: a plane, so 32 bits do.
__device__ __forceinline__ int first_pixel(const Problem& p, int y, int x) {
  return y * p.block_rows * static_cast<int>(p.map_width()) + x * p.block_columns;
}

// 1 + mask. `codes`: the code of the pixel, or the sum or the largest of the block.
template <typename A>
__device__ __forceinline__ A factor_from(const Problem& p, unsigned codes) {
  if (p.resize != Resize::kArea) return A(1) + A(0.5) * static_cast<A>(codes);
  return A(1) + static_cast<A>(codes) / static_cast<A>(2 * p.block_pixels());
}

// 1 + mask of the V cells from (y, x) on, by one thread. Nearest is the maximum of a single pixel.
template <int V, typename A, typename D>
__device__ __forceinline__ void factors_of(const Problem& p, const D* difference,
                                           acc_t<D> threshold, int y, int x, A (&factors)[V]) {
  const D* block = difference + first_pixel(p, y, x);
  const int width = static_cast<int>(p.map_width());
  const int rows = p.resize == Resize::kNearest ? 1 : p.block_rows;
  const int columns = p.resize == Resize::kNearest ? 1 : p.block_columns;
  unsigned codes[V] = {};
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
#pragma unroll 1
    for (int k = 0; k < columns; ++k) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const D pixel = block[r * width + e * p.block_columns + k];
        const unsigned code = code_of(cuda::widen(pixel), threshold);
        codes[e] = p.resize == Resize::kArea ? codes[e] + code : codes[e] > code ? codes[e] : code;
      }
    }
  }
#pragma unroll
  for (int e = 0; e < V; ++e) factors[e] = factor_from<A>(p, codes[e]);
}

// 1 + mask of cell (y, x), by the 32 lanes of a warp together.
template <typename A, typename D>
__device__ A warp_factor_of(const Problem& p, const D* difference, acc_t<D> threshold,
                            const Divider& row_of_pixel, int y, int x, int lane) {
  const D* block = difference + first_pixel(p, y, x);
  if (p.resize == Resize::kNearest)
    return factor_from<A>(p, code_of(cuda::widen(block[0]), threshold));
  const int width = static_cast<int>(p.map_width());
  const unsigned pixels = static_cast<unsigned>(p.block_pixels());
  unsigned codes = 0;
  for (unsigned v = static_cast<unsigned>(lane); v < pixels; v += 32) {
    const int r = row_of_pixel(static_cast<int>(v));
    const int k = static_cast<int>(v) - r * p.block_columns;
    const unsigned code = code_of(cuda::widen(block[r * width + k]), threshold);
    codes = p.resize == Resize::kArea ? codes + code : codes > code ? codes : code;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const unsigned other = __shfl_xor_sync(0xffffffffu, codes, d);
    codes = p.resize == Resize::kArea ? codes + other : codes > other ? codes : other;
  }
  return factor_from<A>(p, codes);
}

}  // namespace
}  // namespace tinyops::difference_gate
