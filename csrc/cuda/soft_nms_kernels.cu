// Soft-NMS in rounds, with the result of the sequential algorithm bit for bit.
//
// A box may be kept at once if it is the best of all boxes left within two steps of overlap: the
// sequential algorithm, too, would keep it before any of them, and a box that it overlaps takes
// part in no other decision before. So boxes kept in one round share no neighbour, every score is
// multiplied in the sequential order, and each round keeps at least the best box of all.
//
// Two kernels per round, one thread per box that is left, candidates from the grid. The number of
// rounds is the longest run of decisions that depend on each other, at most the number of boxes in
// the largest heap of boxes that overlap.
#include "soft_nms.h"

#include "box_grid_walk.h"
#include "launch.h"

namespace tinyops::soft_nms {
namespace {

using cuda::kThreads;

dim3 blocks_of(int n) {
  return cuda::grid_of(ceil_div(n, kThreads), 1, 1);
}
__device__ int thread_number() {
  return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}
__device__ bool inside(int k, int n) {
  return static_cast<unsigned>(k) < static_cast<unsigned>(n);
}

template <typename S>
__global__ void start_kernel(State<S> s, const S* __restrict__ scores, int n, Options o) {
  const int k = thread_number();
  if (!inside(k, n)) return;
  s.scores[k] = is_alive(scores[k], o) ? scores[k] + S(0) : S(-1);  // -0.0 becomes 0.0
  s.final_scores[k] = S(-1);
  s.best[k] = -1;
  s.decayed_by[k] = -1;
  s.kept[k] = 0;
  s.left[k] = k;
}

template <typename S>
__global__ void mark_kernel(State<S> s, int n) {
  const int k = thread_number();
  if (!inside(k, n)) return;
  const int me = s.left[k];
  s.marks[k] = s.scores[me] >= S(0);
  if (!s.marks[k]) s.best[me] = -1;  // it is not listed any more when best_kernel runs again
}

// The boxes that gain or lose by one, some maybe twice.
template <typename T>
class Neighbours {
 public:
  __device__ Neighbours(const Grid<T>& g, const Ids& ids, const Options& o, int me)
      : box_(grid::box_at(g, me)),
        walk_(g, box_, grid::group_of(ids, me),
              o.method == Method::kLinear ? static_cast<T>(o.iou_threshold) : T(0), g.n),
        me_(me) {
    const T own = area(box_);
    any_ = own > T(0) && own - own == T(0);  // else its IoU is 0 or NaN
  }

  // The next one that is near, -1 after the last; overlap() tells whether it is a neighbour.
  __device__ int next(const Grid<T>& g) {
    if (!any_) return -1;
    while (!walk_.on_candidate())
      if (!walk_.next_cell(g)) return -1;
    const int other = walk_.rank(g);
    walk_.skip();
    return other;
  }
  __device__ bool overlap(const Grid<T>& g, const Ids& ids, const Options& o, int other,
                          T& overlap) const {
    overlap = iou(box_, grid::box_at(g, other));
    return other != me_ && decays(overlap, o) && grid::same_group(ids, me_, other);
  }

 private:
  Box<T> box_;
  Walk<T> walk_;
  int me_;
  bool any_;
};

// Two blocks on a multiprocessor: asked for fewer or not at all, nvcc 13.0 spills registers.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    best_kernel(State<S> s, Grid<T> g, Ids ids, int left, Options o) {
  const int k = thread_number();
  if (!inside(k, left)) return;
  const int me = s.left[k];
  S score = s.scores[me];
  int best = score < S(0) ? -1 : me;
  if (best == me) {
    Neighbours<T> near(g, ids, o, me);
    for (int other; (other = near.next(g)) >= 0;) {
      const S its = s.scores[other];
      T overlap;
      if ((its > score || (its == score && other < best)) &&
          near.overlap(g, ids, o, other, overlap)) {
        score = its;
        best = other;
      }
    }
  }
  s.best[me] = best;
}

// Reads `best` of its neighbours and none of the scores that other threads write.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    keep_kernel(State<S> s, Grid<T> g, Ids ids, int left, Options o) {
  const int k = thread_number();
  if (!inside(k, left)) return;
  const int me = s.left[k];
  if (s.best[me] != me) return;
  Neighbours<T> near(g, ids, o, me);
  T overlap;
  for (int other; (other = near.next(g)) >= 0;) {
    const int its = s.best[other];
    if (its >= 0 && its != me && near.overlap(g, ids, o, other, overlap)) return;
  }
  // It is the best of all within two steps.
  s.kept[me] = 1;
  s.final_scores[me] = s.scores[me];
  s.scores[me] = S(-1);
  Neighbours<T> again(g, ids, o, me);
  for (int other; (other = again.next(g)) >= 0;) {
    if (s.best[other] != me || s.decayed_by[other] == me) continue;
    if (!again.overlap(g, ids, o, other, overlap)) continue;
    const S score = decayed(s.scores[other], factor<S>(overlap, o));
    s.scores[other] = is_alive(score, o) ? score : S(-1);
    s.decayed_by[other] = me;
  }
}

template <typename S>
__global__ void gather_kernel(State<S> s, const int32_t* __restrict__ order, int kept,
                              int64_t* __restrict__ keep, S* __restrict__ scores) {
  const int k = thread_number();
  if (!inside(k, kept)) return;
  keep[k] = order[k];
  scores[k] = s.final_scores[order[k]];
}

}  // namespace

template <typename S>
cudaError_t start_cuda(const State<S>& state, const S* scores, int n, const Options& o,
                       cudaStream_t stream) {
  return cuda::launch(start_kernel<S>, blocks_of(n), dim3(kThreads), stream, state, scores, n, o);
}

template <typename S>
cudaError_t drop_gone_cuda(State<S>& s, int listed, cudaStream_t stream) {
  cudaError_t error =
      cuda::launch(mark_kernel<S>, blocks_of(listed), dim3(kThreads), stream, s, listed);
  if (!error) error = count_marked(s.selection, s.marks, listed, listed, nullptr, stream);
  if (!error) error = put_marked_first(s.selection, s.marks, s.left, listed, s.left_before, stream);
  std::swap(s.left, s.left_before);
  return error;
}

template <typename S, typename T>
cudaError_t round_cuda(const State<S>& state, const Grid<T>& grid, const Ids& ids, int left,
                       const Options& o, cudaStream_t stream) {
  const cudaError_t error = cuda::launch(best_kernel<S, T>, blocks_of(left), dim3(kThreads), stream,
                                         state, grid, ids, left, o);
  if (error) return error;
  return cuda::launch(keep_kernel<S, T>, blocks_of(left), dim3(kThreads), stream, state, grid, ids,
                      left, o);
}

template <typename S>
cudaError_t gather_cuda(const State<S>& state, const int32_t* order, int kept, int64_t* keep,
                        S* scores, cudaStream_t stream) {
  if (kept == 0) return cudaSuccess;
  return cuda::launch(gather_kernel<S>, blocks_of(kept), dim3(kThreads), stream, state, order, kept,
                      keep, scores);
}

#define TINYOPS_INSTANTIATE(S)                                                                   \
  template cudaError_t start_cuda(const State<S>&, const S*, int, const Options&, cudaStream_t); \
  template cudaError_t drop_gone_cuda(State<S>&, int, cudaStream_t);                             \
  template cudaError_t round_cuda(const State<S>&, const Grid<float>&, const Ids&, int,          \
                                  const Options&, cudaStream_t);                                 \
  template cudaError_t round_cuda(const State<S>&, const Grid<double>&, const Ids&, int,         \
                                  const Options&, cudaStream_t);                                 \
  template cudaError_t gather_cuda(const State<S>&, const int32_t*, int, int64_t*, S*,           \
                                   cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::soft_nms
