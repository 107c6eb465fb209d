// Launchers of soft_nms on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../ops/soft_nms.h"
#include "box_grid.h"
#include "select.h"

namespace tinyops::soft_nms {

// Everything is [n] by index.
template <typename S>
struct State {
  State(Arena& arena, int64_t n)
      : scores(arena.take<S>(n)),
        final_scores(arena.take<S>(n)),
        best(arena.take<int32_t>(n)),
        decayed_by(arena.take<int32_t>(n)),
        kept(arena.take<uint8_t>(n)),
        marks(arena.take<uint8_t>(n)),
        left(arena.take<int32_t>(n)),
        left_before(arena.take<int32_t>(n)),
        selection(arena, n) {}
  S* scores;            // current ones; below 0 is kept or dropped
  S* final_scores;      // of kept ones; else below 0
  int32_t* best;        // the best box left among those that a box overlaps and itself; -1: gone
  int32_t* decayed_by;  // who took score last
  uint8_t *kept, *marks;
  int32_t *left, *left_before;  // lists of boxes that are left
  Selection selection;
};

template <typename S>
cudaError_t start_cuda(const State<S>& state, const S* scores, int n, const Options& o,
                       cudaStream_t stream);
// Rewrites state.left, of which `listed` are listed, without those that are gone. Their number is
// at *selection.total(listed) then.
template <typename S>
cudaError_t drop_gone_cuda(State<S>& state, int listed, cudaStream_t stream);
// One round for the `left` boxes in state.left.
template <typename S, typename T>
cudaError_t round_cuda(const State<S>& state, const Grid<T>& grid, const Ids& ids, int left,
                       const Options& o, cudaStream_t stream);
template <typename S>
cudaError_t gather_cuda(const State<S>& state, const int32_t* order, int kept, int64_t* keep,
                        S* scores, cudaStream_t stream);

}  // namespace tinyops::soft_nms
