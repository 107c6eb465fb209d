// avg_max_pool on a GPU. The forward reads each element once and writes next to nothing: in NCHW a
// block of threads owns a part of a plane, in NHWC a part of the cells for a tile of channels; a
// second kernel joins the parts, a warp per plane. The backward writes each element once. No
// atomics: the same bits every time.
#include "avg_max_pool.h"

#include <cmath>

#include "../ops/nearest.h"
#include "launch.h"

namespace tinyops::avg_max_pool {
namespace {

using namespace cuda;

constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr int32_t kNowhere = 0x7fffffff;  // later than every cell

// A maximum and its place. It starts as -inf nowhere, which -inf itself does not replace: where
// nothing else comes, the maximum is the first cell that counts, cell 0.
template <typename A>
struct Best {
  A value;
  int32_t place;

  static __device__ Best none() { return {-static_cast<A>(INFINITY), kNowhere}; }
  // A later value: it must be larger, or the first NaN.
  __device__ __forceinline__ void add(A v, int32_t at) {
    if (!(v <= value) && value == value) value = v, place = at;
  }
  // Another maximum, of cells before and after.
  __device__ __forceinline__ void join(A v, int32_t at) {
    const bool ours = value != value, theirs = v != v;
    const bool equal = ours == theirs && (ours || v == value);
    if (equal ? at < place : theirs || (!ours && v > value)) value = v, place = at;
  }
};

// ---- forward, NCHW ------------------------------------------------------------------------------

// x: parts, y: channels, z: images. kMasked: a vector lies in one row.
template <typename T, int V, bool kMasked>
__global__ void __launch_bounds__(kThreads)
    pool_planes_kernel(Problem p, ForwardArgs<T> a, Partials<acc_t<T>> out, Divider row_of,
                       int vectors, int per_part) {
  using A = acc_t<T>;
  __shared__ A sums[kWarps], values[kWarps];
  __shared__ int32_t places[kWarps];
  const int part = static_cast<int>(blockIdx.x), first = part * per_part;
  const int last = min(first + per_part, vectors);
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent e = p.extent(a.valid, n);
    for (int64_t c = blockIdx.y; c < p.channels; c += gridDim.y) {
      const int64_t plane = n * p.channels + c;
      const T* features = a.features + plane * p.plane();
      A sum = 0;
      Best<A> best = Best<A>::none();
#pragma unroll 4
      for (int v = first + static_cast<int>(threadIdx.x); v < last; v += kThreads) {
        const int cell = v * V;
        int x = 0;
        if constexpr (kMasked) {
          const int y = row_of(cell);
          x = cell - y * p.width;
          if (y >= e.rows || x >= e.columns) continue;
        }
        const auto values_of = load<V>(features + cell);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          if (kMasked && x + k >= e.columns) break;
          const A value = widen(values_of.v[k]);
          sum += value;
          best.add(value, cell + k);
        }
      }
      sum = warp_sum(sum);
      for (int d = kWarp / 2; d > 0; d /= 2) {
        const A value = __shfl_xor_sync(0xffffffffu, best.value, d);
        best.join(value, __shfl_xor_sync(0xffffffffu, best.place, d));
      }
      if (lane == 0) sums[warp] = sum, values[warp] = best.value, places[warp] = best.place;
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int w = 1; w < kWarps; ++w) {
          sum += sums[w];
          best.join(values[w], places[w]);
        }
        const int64_t at = plane * gridDim.x + part;
        out.sum[at] = sum, out.max[at] = best.value, out.place[at] = best.place;
      }
      __syncthreads();  // before the next turn writes to shared memory
    }
  }
}

// ---- forward, NHWC ------------------------------------------------------------------------------

// x: tiles of channels, y: parts, z: images. A thread owns V channels in every blockDim.y-th cell.
template <typename T, int V, bool kMasked>
__global__ void __launch_bounds__(kThreads)
    pool_cells_kernel(Problem p, ForwardArgs<T> a, Partials<acc_t<T>> out, Divider row_of,
                      int cells, int per_part) {
  using A = acc_t<T>;
  __shared__ A sums[V][kThreads], values[V][kThreads];
  __shared__ int32_t places[V][kThreads];
  const int parts = static_cast<int>(gridDim.y), rows = static_cast<int>(blockDim.y);
  const int row = static_cast<int>(threadIdx.y);
  const int slot = row * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V;
  const int part = static_cast<int>(blockIdx.y), last = min((part + 1) * per_part, cells);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent extent = p.extent(a.valid, n);
    const T* features = a.features + n * p.plane() * p.channels + c;
    A sum[V] = {};
    Best<A> best[V];
#pragma unroll
    for (int k = 0; k < V; ++k) best[k] = Best<A>::none();
    if (c < p.channels) {
#pragma unroll 4
      for (int cell = part * per_part + row; cell < last; cell += rows) {
        if constexpr (kMasked) {
          const int y = row_of(cell);
          if (y >= extent.rows || cell - y * p.width >= extent.columns) continue;
        }
        const auto values_of = load<V>(features + cell * p.channels);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const A value = widen(values_of.v[k]);
          sum[k] += value;
          best[k].add(value, cell);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < V; ++k)
      sums[k][slot] = sum[k], values[k][slot] = best[k].value, places[k][slot] = best[k].place;
    for (int d = rows / 2; d > 0; d /= 2) {
      __syncthreads();
      if (row < d) {
        const int other = slot + d * static_cast<int>(blockDim.x);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          Best<A> both{values[k][slot], places[k][slot]};
          both.join(values[k][other], places[k][other]);
          sums[k][slot] += sums[k][other];
          values[k][slot] = both.value, places[k][slot] = both.place;
        }
      }
    }
    if (row == 0 && c < p.channels) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const int64_t at = (n * parts + part) * p.channels + c + k;
        out.sum[at] = sums[k][slot], out.max[at] = values[k][slot], out.place[at] = places[k][slot];
      }
    }
    __syncthreads();  // before the next turn writes to shared memory
  }
}

// ---- forward: joining the parts -----------------------------------------------------------------

// A warp owns a plane, its lanes share the parts. x: channels, y: images.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    join_kernel(Problem p, ForwardArgs<T> a, Partials<acc_t<T>> in, int parts) {
  using A = acc_t<T>;
  const int64_t step = p.channels_last ? p.channels : 1;
  for (int64_t n = blockIdx.y; n < p.images; n += gridDim.y) {
    const int64_t cells = p.extent(a.valid, n).cells();
    for (int64_t c = int64_t{blockIdx.x} * kWarps + threadIdx.y; c < p.channels;
         c += int64_t{gridDim.x} * kWarps) {
      const int64_t plane = n * p.channels + c;
      const int64_t first = p.channels_last ? n * parts * p.channels + c : plane * parts;
      double sum = 0;
      Best<A> best = Best<A>::none();
      for (int part = static_cast<int>(threadIdx.x); part < parts; part += kWarp) {
        const int64_t at = first + part * step;
        sum += static_cast<double>(in.sum[at]);
        best.join(in.max[at], in.place[at]);
      }
      sum = warp_sum(sum);
      for (int d = kWarp / 2; d > 0; d /= 2) {
        const A value = __shfl_xor_sync(0xffffffffu, best.value, d);
        best.join(value, __shfl_xor_sync(0xffffffffu, best.place, d));
      }
      if (threadIdx.x != 0) continue;
      const bool any = cells > 0;
      a.mean[plane] = static_cast<T>(static_cast<A>(any ? sum / static_cast<double>(cells) : 0.0));
      a.max[plane] = static_cast<T>(any ? best.value : A(0));
      a.index[plane] = !any ? -1 : best.place == kNowhere ? 0 : best.place;
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ acc_t<T> share_of(const BackwardArgs<T>& a, int64_t plane, Extent e) {
  return e.cells() == 0 ? acc_t<T>(0) : widen(a.d_mean[plane]) / static_cast<acc_t<T>>(e.cells());
}

constexpr int kVectorsPerThread = 4;  // share what is worked out for a plane

// NCHW. x: vectors of V cells, y: channels, z: images.
template <typename T, int V, bool kMasked>
__global__ void __launch_bounds__(kThreads)
    backward_planes_kernel(Problem p, BackwardArgs<T> a, Divider row_of, int vectors) {
  using A = acc_t<T>;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent e = p.extent(a.valid, n);
    for (int64_t c = blockIdx.y; c < p.channels; c += gridDim.y) {
      const int64_t plane = n * p.channels + c;
      const int place = static_cast<int>(a.index[plane]);
      const A share = share_of(a, plane, e), peak = share + widen(a.d_max[plane]);
      T* out = a.d_features + plane * p.plane();
      for (unsigned v = blockIdx.x * kThreads + threadIdx.x; v < static_cast<unsigned>(vectors);
           v += gridDim.x * kThreads) {
        const int cell = static_cast<int>(v) * V;
        int left = V;  // cells of the vector that count
        if constexpr (kMasked) {
          const int y = row_of(cell);
          left = y < e.rows ? e.columns - (cell - y * p.width) : 0;
        }
        Vec<T, V> d;
#pragma unroll
        for (int k = 0; k < V; ++k)
          d.v[k] = static_cast<T>(cell + k == place ? peak : k < left ? share : A(0));
        store<V>(out + cell, d);
      }
    }
  }
}

// NHWC. x: tiles of channels, y: parts, z: images. A thread owns V channels in some cells.
template <typename T, int V, bool kMasked>
__global__ void __launch_bounds__(kThreads)
    backward_cells_kernel(Problem p, BackwardArgs<T> a, Divider row_of, int cells, int per_part) {
  using A = acc_t<T>;
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V;
  const int part = static_cast<int>(blockIdx.y), last = min((part + 1) * per_part, cells);
  if (c >= p.channels) return;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent e = p.extent(a.valid, n);
    A share[V], peak[V];
    int place[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int64_t plane = n * p.channels + c + k;
      share[k] = share_of(a, plane, e);
      peak[k] = share[k] + widen(a.d_max[plane]);
      place[k] = static_cast<int>(a.index[plane]);
    }
    T* out = a.d_features + n * p.plane() * p.channels + c;
    for (int cell = part * per_part + static_cast<int>(threadIdx.y); cell < last;
         cell += static_cast<int>(blockDim.y)) {
      bool counts = true;
      if constexpr (kMasked) {
        const int y = row_of(cell);
        counts = y < e.rows && cell - y * p.width < e.columns;
      }
      Vec<T, V> d;
#pragma unroll
      for (int k = 0; k < V; ++k)
        d.v[k] = static_cast<T>(cell == place[k] ? peak[k] : counts ? share[k] : A(0));
      store<V>(out + cell * p.channels, d);
    }
  }
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

// At most 256 parts, for the warp that joins them.
int64_t cells_per_part(const Problem& p) {
  const int64_t least = p.channels_last ? 128 : 8192, most = ceil_div(p.plane(), 256);
  return std::max(least, ceil_div(most, 16) * 16);  // a whole number of vectors
}

// The threads of a block in NHWC: as many lanes as the channels need, up to a warp.
dim3 block_of(int64_t vectors_of_channels) {
  unsigned lanes = kWarp;
  while (lanes > 1 && lanes / 2 >= vectors_of_channels) lanes /= 2;
  return dim3(lanes, kThreads / lanes);
}

// Calls f with the length of vectors, and whether there is padding, as compile-time constants.
template <typename T, typename F>
cudaError_t for_path(const Problem& p, const T* features, const int64_t* valid, const F& f) {
  constexpr int V = kVec16<T>;
  const int64_t line = p.channels_last ? p.channels : valid ? p.width : p.plane();
  const bool wide = line % V == 0 && all_aligned(features);
  if (valid)
    return wide ? f(std::integral_constant<int, V>{}, std::true_type{})
                : f(std::integral_constant<int, 1>{}, std::true_type{});
  return wide ? f(std::integral_constant<int, V>{}, std::false_type{})
              : f(std::integral_constant<int, 1>{}, std::false_type{});
}

}  // namespace

int64_t parts_of(const Problem& p) {
  return ceil_div(p.plane(), cells_per_part(p));
}

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& a,
                         const Partials<acc_t<T>>& partials, cudaStream_t stream) {
  const int64_t parts = parts_of(p), per_part = cells_per_part(p);
  const Divider row_of(p.width);
  const cudaError_t error = for_path(p, a.features, a.valid, [&](auto length, auto masked) {
    constexpr int V = decltype(length)::value;
    constexpr bool kMasked = decltype(masked)::value;
    if (!p.channels_last)
      return launch(pool_planes_kernel<T, V, kMasked>, grid_of(parts, p.channels, p.images),
                    dim3(kThreads), stream, p, a, partials, row_of, static_cast<int>(p.plane() / V),
                    static_cast<int>(per_part / V));
    const dim3 block = block_of(p.channels / V);
    return launch(pool_cells_kernel<T, V, kMasked>,
                  grid_of(ceil_div(p.channels / V, block.x), parts, p.images), block, stream, p, a,
                  partials, row_of, static_cast<int>(p.plane()), static_cast<int>(per_part));
  });
  if (error != cudaSuccess) return error;
  return launch(join_kernel<T>, grid_of(ceil_div(p.channels, kWarps), p.images, 1),
                dim3(kWarp, kWarps), stream, p, a, partials, static_cast<int>(parts));
}

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const int64_t parts = parts_of(p), per_part = cells_per_part(p);
  const Divider row_of(p.width);
  return for_path(p, a.d_features, a.valid, [&](auto length, auto masked) {
    constexpr int V = decltype(length)::value;
    constexpr bool kMasked = decltype(masked)::value;
    if (!p.channels_last) {
      const int64_t vectors = p.plane() / V;
      return launch(backward_planes_kernel<T, V, kMasked>,
                    grid_of(ceil_div(vectors, kThreads * kVectorsPerThread), p.channels, p.images),
                    dim3(kThreads), stream, p, a, row_of, static_cast<int>(vectors));
    }
    const dim3 block = block_of(p.channels / V);
    return launch(backward_cells_kernel<T, V, kMasked>,
                  grid_of(ceil_div(p.channels / V, block.x), parts, p.images), block, stream, p, a,
                  row_of, static_cast<int>(p.plane()), static_cast<int>(per_part));
  });
}

#define TINYOPS_INSTANTIATE(T)                                                   \
  template cudaError_t forward_cuda<T>(const Problem&, const ForwardArgs<T>&,    \
                                       const Partials<acc_t<T>>&, cudaStream_t); \
  template cudaError_t backward_cuda<T>(const Problem&, const BackwardArgs<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::avg_max_pool
