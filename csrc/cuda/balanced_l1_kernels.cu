// balanced_l1 on a GPU. A mask of one byte per cell is painted first, a block of threads per box;
// boxes write the same value, so that their order does not matter. Then prediction and target move
// once, and in the backward the gradients; in NCHW a thread keeps its cells for some channels, so
// that the mask is read once for them. Sums of blocks are joined in a fixed order: no atomics.
#include "balanced_l1.h"

#include "../ops/nearest.h"
#include "launch.h"

namespace tinyops::balanced_l1 {
namespace {

using namespace cuda;

// ---- the mask -----------------------------------------------------------------------------------

// x: columns, y: rows, z: images.
__global__ void __launch_bounds__(kThreads, 2)
    clear_kernel(Problem p, const int64_t* __restrict__ valid, uint8_t* __restrict__ mask) {
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent e = extent_of(valid, n, p.height, p.width);
    for (int y = static_cast<int>(blockIdx.y); y < p.height; y += static_cast<int>(gridDim.y))
      for (unsigned x = blockIdx.x * kThreads + threadIdx.x; x < static_cast<unsigned>(p.width);
           x += gridDim.x * kThreads)
        mask[n * p.plane() + int64_t{y} * p.width + x] =
            y < e.rows && static_cast<int>(x) < e.columns ? kInside : kOutside;
  }
}

constexpr int kPaintX = 32, kPaintY = 4;

// x walks the boxes; the threads of a block share a box.
template <typename T>
__global__ void __launch_bounds__(kPaintX* kPaintY)
    paint_kernel(Problem p, const Box<T>* __restrict__ boxes, const int64_t* __restrict__ image_ids,
                 const int64_t* __restrict__ valid, uint8_t* __restrict__ mask) {
  for (unsigned k = blockIdx.x; k < static_cast<unsigned>(p.boxes); k += gridDim.x) {
    const int64_t n = image_ids[k];
    if (n < 0 || n >= p.images) continue;
    const Cells c = cells_of(boxes[k], p.scale, extent_of(valid, n, p.height, p.width));
    for (int y = c.top + static_cast<int>(threadIdx.y); y < c.bottom; y += kPaintY)
      for (int x = c.left + static_cast<int>(threadIdx.x); x < c.right; x += kPaintX)
        mask[n * p.plane() + int64_t{y} * p.width + x] = kPositive;
  }
}

// ---- walking through the maps -------------------------------------------------------------------

constexpr int kChannels = 8;          // of a thread in NCHW
constexpr int kVectorsPerThread = 8;  // of a row in NHWC

// The vectors of a thread: body(offset, mask) for each, cells(mask, n) once for n cells of its mask
// in the first channel. NCHW: x: vectors of a plane, y: groups of channels, z: images.
template <int V, typename Body, typename Count>
__device__ __forceinline__ void walk_planes(const Problem& p, const uint8_t* mask, int vectors,
                                            const Body& body, const Count& cells) {
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (unsigned v = blockIdx.x * kThreads + threadIdx.x; v < static_cast<unsigned>(vectors);
         v += gridDim.x * kThreads) {
      const int cell = static_cast<int>(v) * V;
      uint8_t m[V];
      if constexpr (V == 1) {
        m[0] = mask[n * p.plane() + cell];
      } else {
        const auto loaded = load<V>(mask + n * p.plane() + cell);
#pragma unroll
        for (int k = 0; k < V; ++k) m[k] = loaded.v[k];
      }
      if (blockIdx.y == 0) cells(m, V);
      for (int64_t c = int64_t{blockIdx.y} * kChannels; c < p.channels;
           c += int64_t{gridDim.y} * kChannels) {
        const int64_t at = (n * p.channels + c) * p.plane() + cell;
        if (c + kChannels <= p.channels) {
#pragma unroll 4
          for (int k = 0; k < kChannels; ++k) body(at + k * p.plane(), m);
        } else {
          for (int k = 0; c + k < p.channels; ++k) body(at + k * p.plane(), m);
        }
      }
    }
  }
}

// NHWC: x: vectors of a row, y: rows, z: images.
template <int V, typename Body, typename Count>
__device__ __forceinline__ void walk_cells(const Problem& p, const uint8_t* mask,
                                           const Divider& cell_of, int per_cell, const Body& body,
                                           const Count& cells) {
  const unsigned vectors = static_cast<unsigned>(p.width) * static_cast<unsigned>(per_cell);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int y = static_cast<int>(blockIdx.y); y < p.height; y += static_cast<int>(gridDim.y)) {
      const int64_t row = n * p.plane() + int64_t{y} * p.width;
#pragma unroll 4
      for (unsigned v = blockIdx.x * kThreads + threadIdx.x; v < vectors;
           v += gridDim.x * kThreads) {
        const int x = cell_of(static_cast<int>(v)), c = (static_cast<int>(v) - x * per_cell) * V;
        uint8_t m[V];
        m[0] = mask[row + x];
#pragma unroll
        for (int k = 1; k < V; ++k) m[k] = m[0];
        if (c == 0) cells(m, 1);
        body((row + x) * p.channels + c, m);
      }
    }
  }
}

template <int V, bool kChannelsLast, typename Body, typename Count>
__device__ __forceinline__ void walk(const Problem& p, const uint8_t* mask, const Divider& cell_of,
                                     int vectors, const Body& body, const Count& cells) {
  if constexpr (kChannelsLast)
    walk_cells<V>(p, mask, cell_of, vectors, body, cells);
  else
    walk_planes<V>(p, mask, vectors, body, cells);
}

// ---- sums ---------------------------------------------------------------------------------------

// The sum over the block, for its first thread.
template <typename S>
__device__ S block_sum(S v) {
  __shared__ S sums[kThreads / 32];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  S total = 0;
  if (threadIdx.x == 0)
    for (const S s : sums) total += s;
  __syncthreads();  // before another sum of the same type
  return total;
}

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(Problem p, ForwardArgs<T> a, Partials out, Divider cell_of, int vectors) {
  using A = acc_t<T>;
  A total = 0, positive = 0;
  int count = 0;
  walk<V, kChannelsLast>(
      p, a.mask, cell_of, vectors,
      [&](int64_t at, const uint8_t (&m)[V]) {
        const auto prediction = load<V>(a.prediction + at), target = load<V>(a.target + at);
        A all = 0, some = 0;
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const A d = fabs(widen(prediction.v[k]) - widen(target.v[k]));
          all += m[k] > kOutside ? d : A(0);
          some += m[k] > kInside ? d : A(0);
        }
        total += all, positive += some;
      },
      [&](const uint8_t (&m)[V], int n) {
        for (int k = 0; k < n; ++k) count += m[k] > kInside;
      });
  const double all = block_sum(static_cast<double>(total));
  const double some = block_sum(static_cast<double>(positive));
  count = block_sum(count);
  if (threadIdx.x != 0) return;
  const int64_t block = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out.total[block] = all, out.positive[block] = some, out.cells[block] = count;
}

// One block.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    join_kernel(Partials in, int64_t blocks, Results<A> out) {
  double total = 0, positive = 0;
  long long cells = 0;
  for (int64_t k = threadIdx.x; k < blocks; k += kThreads)
    total += in.total[k], positive += in.positive[k], cells += in.cells[k];
  total = block_sum(total);
  positive = block_sum(positive);
  cells = block_sum(cells);
  if (threadIdx.x != 0) return;
  *out.total = static_cast<A>(total);
  *out.positive = static_cast<A>(positive);
  *out.cells = cells;
}

// ---- backward -----------------------------------------------------------------------------------

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(Problem p, BackwardArgs<T> a, Divider cell_of, int vectors) {
  using A = acc_t<T>;
  const A inside = *a.d_total, positive = inside + *a.d_positive;
  walk<V, kChannelsLast>(
      p, a.mask, cell_of, vectors,
      [&](int64_t at, const uint8_t (&m)[V]) {
        const auto prediction = load<V>(a.prediction + at), target = load<V>(a.target + at);
        Vec<T, V> up, down;
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const A weight = m[k] > kInside ? positive : m[k] > kOutside ? inside : A(0);
          const A d = widen(prediction.v[k]) - widen(target.v[k]);
          const A slope = d > 0 ? weight : d < 0 ? -weight : A(0);  // 0 for a NaN, as in torch
          up.v[k] = static_cast<T>(slope);
          down.v[k] = static_cast<T>(-slope);
        }
        if (a.d_prediction) store<V>(a.d_prediction + at, up);
        if (a.d_target) store<V>(a.d_target + at, down);
      },
      [](const uint8_t (&)[V], int) {});
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

struct Path {
  bool wide, channels_last;
  int64_t vectors;  // of a plane, in NHWC of a cell
  dim3 grid;
};

template <typename T>
Path path_of(const Problem& p, bool aligned) {
  const bool last = p.channels_last && p.channels > 0;
  const int64_t line = last ? p.channels : p.plane();
  const bool wide = line % kVec16<T> == 0 && aligned;
  const int64_t vectors = line / (wide ? kVec16<T> : 1);
  if (last)
    return {wide, last, vectors,
            grid_of(ceil_div(vectors * p.width, kThreads * kVectorsPerThread), p.height, p.images)};
  return {wide, last, vectors,
          grid_of(ceil_div(vectors, kThreads), ceil_div(p.channels, kChannels), p.images)};
}

// Calls f with the length of vectors and the layout as compile-time constants.
template <typename T, typename F>
cudaError_t for_path(const Path& path, const F& f) {
  constexpr int V = kVec16<T>;
  using Wide = std::integral_constant<int, V>;
  using Narrow = std::integral_constant<int, 1>;
  if (path.channels_last)
    return path.wide ? f(Wide{}, std::true_type{}) : f(Narrow{}, std::true_type{});
  return path.wide ? f(Wide{}, std::false_type{}) : f(Narrow{}, std::false_type{});
}

template <typename T>
Path path_of(const Problem& p, const ForwardArgs<T>& a) {
  return path_of<T>(p, all_aligned(a.prediction, a.target, a.mask));
}

}  // namespace

template <typename T>
cudaError_t paint_cuda(const Problem& p, const Box<T>* boxes, const int64_t* image_ids,
                       const int64_t* valid, uint8_t* mask, cudaStream_t stream) {
  if (p.cells() == 0) return cudaSuccess;
  const dim3 grid = grid_of(ceil_div(p.width, kThreads), p.height, p.images);
  const cudaError_t error =
      valid ? launch(clear_kernel, grid, dim3(kThreads), stream, p, valid, mask)
            : cudaMemsetAsync(mask, kInside, static_cast<size_t>(p.cells()), stream);
  if (error != cudaSuccess || p.boxes == 0) return error;
  return launch(paint_kernel<T>, grid_of(std::min(p.boxes, 65535), 1, 1), dim3(kPaintX, kPaintY),
                stream, p, boxes, image_ids, valid, mask);
}

template <typename T>
int64_t blocks_of(const Problem& p, const ForwardArgs<T>& a) {
  const dim3 grid = path_of(p, a).grid;
  return p.cells() == 0 ? 0 : int64_t{grid.x} * grid.y * grid.z;
}

template <typename T>
cudaError_t sums_cuda(const Problem& p, const ForwardArgs<T>& a, const Partials& partials,
                      const Results<acc_t<T>>& results, cudaStream_t stream) {
  const int64_t blocks = blocks_of(p, a);
  const Path path = path_of(p, a);
  const Divider cell_of(path.vectors);
  const cudaError_t error =
      blocks == 0 ? cudaSuccess : for_path<T>(path, [&](auto length, auto last) {
        return launch(sums_kernel<T, decltype(length)::value, decltype(last)::value>, path.grid,
                      dim3(kThreads), stream, p, a, partials, cell_of,
                      static_cast<int>(path.vectors));
      });
  if (error != cudaSuccess) return error;
  return launch(join_kernel<acc_t<T>>, dim3(1), dim3(kThreads), stream, partials, blocks, results);
}

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const Path path =
      path_of<T>(p, all_aligned(a.prediction, a.target, a.mask, a.d_prediction, a.d_target));
  const Divider cell_of(path.vectors);
  return for_path<T>(path, [&](auto length, auto last) {
    return launch(backward_kernel<T, decltype(length)::value, decltype(last)::value>, path.grid,
                  dim3(kThreads), stream, p, a, cell_of, static_cast<int>(path.vectors));
  });
}

#define TINYOPS_INSTANTIATE(T)                                                              \
  template int64_t blocks_of<T>(const Problem&, const ForwardArgs<T>&);                     \
  template cudaError_t sums_cuda<T>(const Problem&, const ForwardArgs<T>&, const Partials&, \
                                    const Results<acc_t<T>>&, cudaStream_t);                \
  template cudaError_t backward_cuda<T>(const Problem&, const BackwardArgs<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE
template cudaError_t paint_cuda<float>(const Problem&, const Box<float>*, const int64_t*,
                                       const int64_t*, uint8_t*, cudaStream_t);
template cudaError_t paint_cuda<double>(const Problem&, const Box<double>*, const int64_t*,
                                        const int64_t*, uint8_t*, cudaStream_t);

}  // namespace tinyops::balanced_l1
