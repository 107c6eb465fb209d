// Exact greedy suppression on the GPU, best box first: the heart of nms and stitch_tiles. O(n)
// memory and no host synchronisation.
#pragma once
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "box_grid.h"
#include "select.h"

namespace tinyops::greedy {

enum class Rule : int {
  kIou = 0,     // a box goes if its IoU with a kept one is above iou_threshold
  kIos = 1,     // ... its intersection over the smaller area
  kStitch = 2,  // tiles differ, and IoU > iou_threshold, or truncated and IoS > ios_threshold
};

template <typename T>
struct Problem {
  const Box<T>* boxes;   // [n] by index
  const int32_t* order;  // [n] the index at each rank, best first
  int n;
  Ids ids;
  T iou_threshold;                     // by threshold_of(); kIos: the threshold of that
  T ios_threshold = 0;                 // kStitch
  T offset = 0;                        // added to widths and heights, those of intersections, too
  const int32_t* tiles = nullptr;      // [n] by index, kStitch
  const uint8_t* truncated = nullptr;  // [n] by index, of 0 and 1, kStitch
};

// x > threshold for every x of type T if and only if x > threshold_of<T>(threshold).
template <typename T>
T threshold_of(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return nearest > threshold ? std::nextafter(nearest, -std::numeric_limits<T>::infinity())
                             : nearest;
}

template <typename T>
struct Memory {
  Memory(Arena& arena, int64_t n, size_t sort_scratch_bytes)
      : grid(arena, n, sort_scratch_bytes),
        selection(arena, n),
        status(arena.take<uint8_t>(n)),
        ticket(arena.take<unsigned>(1)) {}
  GridMemory<T> grid;
  Selection selection;  // of what is kept, once count_marked() has been called
  uint8_t* status;      // [n] by rank: 1 is kept, 2 is not
  unsigned* ticket;
};

// Fills status.
template <Rule kRule, typename T>
cudaError_t suppress(const Memory<T>& memory, const Problem<T>& p, cudaStream_t stream);

}  // namespace tinyops::greedy
