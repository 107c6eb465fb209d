// A grid over boxes on the GPU that finds what may overlap a box, for any mix of sizes: O(n)
// memory.
//
// A box lies in the cell of its centre, on the level of its longer side: cells of a level are two
// to eight times as large as its boxes and four times those of the level below. Level, cell, label
// and image are hashed into about n buckets. Two cells in one bucket cost time, never a result: the
// grid only proposes candidates. Cells are powers of two that do not depend on the data, so that
// nothing has to be known on the host.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../ops/boxes.h"
#include "arena.h"

namespace tinyops {

// Labels and images of boxes; null: all alike. Compared exactly, never added to coordinates.
struct Ids {
  const int64_t* labels;
  const int64_t* image_ids;
};

// "rank" is a position in the order that the grid was built with.
template <typename T>
struct Grid {
  const Box<T>* boxes;               // [n] by rank
  const int32_t* ranks;              // [n] by bucket, in a bucket rising
  const int2* buckets;               // [2^bits] begin and end in `ranks`
  const unsigned long long* levels;  // one bit for each level that has boxes
  int n, bits;
  T offset;  // added to widths and heights
};

// Arrays of the grid and what building it takes.
template <typename T>
struct GridMemory {
  GridMemory(Arena& arena, int64_t n, size_t sort_scratch_bytes);
  Box<T>* boxes;
  int32_t *ranks, *unsorted_ranks;
  uint32_t *keys, *unsorted_keys;
  int2* buckets;
  unsigned long long* levels;
  void* sort_scratch;
  size_t sort_scratch_bytes;
  int bits;
};
cudaError_t grid_sort_scratch(int64_t n, size_t& bytes);

// boxes: [n] by index; order: [n] the index at each rank, null for the order of the boxes.
template <typename T>
cudaError_t build_grid(const GridMemory<T>& memory, const Box<T>* boxes, const int32_t* order,
                       const Ids& ids, int n, T offset, Grid<T>& grid, cudaStream_t stream);

}  // namespace tinyops
