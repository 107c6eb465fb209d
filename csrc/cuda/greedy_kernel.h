// The kernel of greedy.h, included by the operators that use it, each with its own rules.
//
// A box is dropped when a better one that overlaps it is kept, and kept when all better ones that
// overlap it are dropped. One thread decides one box, and waits for the decisions it depends on:
//  - Blocks take 256 ranks each, by a ticket when they start. What a box waits for has a better
//    rank, so it belongs to a running block, whatever the order in which blocks start; the best
//    undecided box waits for nothing.
//  - A warp does one candidate per lane and step and comes together after each, so that no lane
//    that waits can keep another one from its decision.
//
// Candidates come from the grid; inside a cell the best comes first, so a duplicate ends its search
// early. The worst case is quadratic: n boxes in one cell (or so long and thin, or of so many
// sizes, that the search goes one by one) that do not suppress each other.
#pragma once
#include "box_grid_walk.h"
#include "greedy.h"
#include "launch.h"

namespace tinyops::greedy {

enum Status : uint8_t { kUndecided = 0, kKept = 1, kDropped = 2 };

template <Rule kRule, typename T>
class Overlap {
 public:
  __device__ Overlap(const Problem<T>& p, const Box<T>& box, int index)
      : box_(box), area_(area_of(p, box)), index_(index) {
    if constexpr (kRule == Rule::kStitch) truncated_ = p.truncated[index];
  }

  // A box without area overlaps nothing, not even where rounding made its area 0.
  __device__ bool possible() const { return area_ != T(0); }
  // A lower bound of the IoU with whatever may suppress this box.
  __device__ T min_iou(const Problem<T>& p) const {
    return kRule == Rule::kIos || truncated_ ? T(0) : p.iou_threshold;
  }

  __device__ bool with(const Problem<T>& p, const Box<T>& other, int rank) const {
    const T width = smaller(box_.x2, other.x2) - larger(box_.x1, other.x1) + p.offset;
    const T height = smaller(box_.y2, other.y2) - larger(box_.y1, other.y1) + p.offset;
    if (!(width > 0 && height > 0)) return false;
    const T both = width * height, other_area = area_of(p, other);
    const T iou = both / (area_ + other_area - both);
    const T ios = both / smaller(area_, other_area);
    if constexpr (kRule == Rule::kIou) {
      if (!(iou > p.iou_threshold)) return false;
    } else if constexpr (kRule == Rule::kIos) {
      if (!(ios > p.iou_threshold)) return false;
    } else {
      if (!(iou > p.iou_threshold || (truncated_ && ios > p.ios_threshold))) return false;
    }
    const int other_index = p.order[rank];
    if constexpr (kRule == Rule::kStitch) {
      if (p.tiles[index_] == p.tiles[other_index]) return false;
    }
    return grid::same_group(p.ids, index_, other_index);
  }

 private:
  __device__ static T area_of(const Problem<T>& p, const Box<T>& b) {
    return grid::width_of(b, p.offset) * grid::height_of(b, p.offset);
  }
  Box<T> box_;
  T area_;
  int index_;
  bool truncated_ = false;
};

template <Rule kRule, typename T>
__global__ void __launch_bounds__(cuda::kThreads)
    suppress_kernel(Problem<T> p, Grid<T> g, volatile uint8_t* status, unsigned* ticket) {
  constexpr unsigned kAll = 0xffffffffu;
  __shared__ unsigned turn;
  if (threadIdx.x == 0) turn = atomicAdd(ticket, 1u);
  __syncthreads();
  const unsigned rank = turn * blockDim.x + threadIdx.x;
  bool done = rank >= static_cast<unsigned>(p.n);
  const int me = static_cast<int>(done ? 0 : rank), index = p.order[me];
  const Box<T> box = g.boxes[me];
  const Overlap<kRule, T> overlap(p, box, index);
  Walk<T> walk(g, box, grid::group_of(p.ids, index), overlap.min_iou(p), me);
  if (!done && !overlap.possible()) {
    status[me] = kKept;
    done = true;
  }
  while (true) {
    bool moved = false;
    if (!done) {
      moved = true;
      Status decision = kUndecided;
      if (walk.on_candidate()) {
        const int other = walk.rank(g);
        if (other >= me) {
          walk.skip_cell();
        } else if (!overlap.with(p, g.boxes[other], other)) {
          walk.skip();
        } else {
          const uint8_t its = status[other];
          if (its == kKept) decision = kDropped;
          if (its == kDropped) walk.skip();
          moved = its != kUndecided;  // else ask again
        }
      } else if (!walk.next_cell(g)) {
        decision = kKept;
      }
      if (decision != kUndecided) {
        status[me] = decision;
        done = true;
      }
    }
    if (__any_sync(kAll, moved)) continue;
    if (__all_sync(kAll, done)) break;
    __nanosleep(40);
  }
}

template <Rule kRule, typename T>
cudaError_t suppress(const Memory<T>& m, const Problem<T>& p, cudaStream_t stream) {
  Grid<T> g;
  cudaError_t error = build_grid(m.grid, p.boxes, p.order, p.ids, p.n, p.offset, g, stream);
  if (!error) error = cudaMemsetAsync(m.status, kUndecided, static_cast<size_t>(p.n), stream);
  if (!error) error = cudaMemsetAsync(m.ticket, 0, sizeof(*m.ticket), stream);
  if (error) return error;
  return cuda::launch(suppress_kernel<kRule, T>, cuda::grid_of(ceil_div(p.n, cuda::kThreads), 1, 1),
                      dim3(cuda::kThreads), stream, p, g, m.status, m.ticket);
}

}  // namespace tinyops::greedy
