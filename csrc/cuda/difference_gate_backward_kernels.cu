// The backward of difference_gate on a GPU. One pass over the features: 3 elements move per element
// (grad, features, d_features), and the sums over channels and over cells come from it. Both are
// added up in a fixed order in registers, across warps, through shared memory, and by small kernels
// that add the parts of blocks. No atomics: the same bits every time.
#include "difference_gate.h"
#include "difference_gate_mask.h"
#include "launch.h"

namespace tinyops::difference_gate {
namespace {

using namespace cuda;

constexpr int kWarp = 32, kWarps = kThreads / kWarp;

// ---- NCHW ---------------------------------------------------------------------------------------

constexpr int kPositions = 16, kSlices = 16;  // of a block: 16-byte vectors, and shares of channels
constexpr int kUnroll = 2;                    // channels that a thread loads together

// A thread owns V cells in every 16th channel.
template <typename T, typename D, int V>
__global__ void __launch_bounds__(kPositions* kSlices, 2)
    backward_nchw_kernel(Problem p, BackwardArgs<T, D> a, Divider row_of_cell, int vectors,
                         int blocks) {
  using A = acc_t<T>;
  __shared__ A factors[kPositions * V];
  __shared__ A shared[V][kSlices][kPositions];
  const int slice = static_cast<int>(threadIdx.y), column = static_cast<int>(threadIdx.x);
  const int cells = static_cast<int>(p.cells());
  const acc_t<D> threshold = widen(*a.threshold);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int block = static_cast<int>(blockIdx.x); block < blocks;
         block += static_cast<int>(gridDim.x)) {
      for (int k = slice * kPositions + column; k < kPositions * V; k += kPositions * kSlices) {
        const int64_t cell = int64_t{block} * kPositions * V + k;
        if (cell >= cells) continue;
        const int y = row_of_cell(static_cast<int>(cell));
        A factor[1];
        factors_of(p, a.difference + n * p.map_pixels(), threshold, y,
                   static_cast<int>(cell) - y * p.width, factor);
        factors[k] = factor[0];
      }
      __syncthreads();
      const int64_t v = int64_t{block} * kPositions + column, at = v * V;
      const bool active = v < vectors;
      A factor[V], total[V] = {};
#pragma unroll
      for (int e = 0; e < V; ++e) factor[e] = active ? factors[column * V + e] : A(0);
      for (int64_t first = 0; first < p.channels; first += kSlices * kUnroll) {
        Vec<T, V> grad[kUnroll] = {}, features[kUnroll] = {};
        A weight[kUnroll] = {};
#pragma unroll
        for (int k = 0; k < kUnroll; ++k) {
          const int64_t c = first + k * kSlices + slice;
          if (!active || c >= p.channels) continue;
          grad[k] = load<V>(a.grad + (n * p.channels + c) * cells + at);
          features[k] = load<V>(a.features + (n * p.channels + c) * cells + at);
          weight[k] = widen(a.channel_weight[n * p.channels + c]);
        }
#pragma unroll
        for (int k = 0; k < kUnroll; ++k) {
          const int64_t c = first + k * kSlices + slice;
          A part = 0;
          Vec<T, V> d;
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const A g = widen(grad[k].v[e]), f = widen(features[k].v[e]), scaled = g * factor[e];
            total[e] += g * (f * weight[k]);
            part += scaled * f;
            d.v[e] = static_cast<T>(scaled * weight[k]);
          }
          if (a.d_features != nullptr && active && c < p.channels)
            store<V>(a.d_features + (n * p.channels + c) * cells + at, d);
          if (a.parts == nullptr) continue;
#pragma unroll
          for (int d = kPositions / 2; d > 0; d /= 2) part += __shfl_xor_sync(0xffffffffu, part, d);
          if (column == 0 && c < p.channels) a.parts[(n * blocks + block) * p.channels + c] = part;
        }
      }
      if (a.sums != nullptr) {
#pragma unroll
        for (int e = 0; e < V; ++e) shared[e][slice][column] = total[e];
        for (int d = kSlices / 2; d > 0; d /= 2) {
          __syncthreads();
          if (slice < d) {
#pragma unroll
            for (int e = 0; e < V; ++e) shared[e][slice][column] += shared[e][slice + d][column];
          }
        }
        if (active && slice == 0) {
#pragma unroll
          for (int e = 0; e < V; ++e) a.sums[n * cells + at + e] = shared[e][0][column];
        }
      }
      __syncthreads();  // before the next turn writes to shared memory
    }
  }
}

// ---- NHWC ---------------------------------------------------------------------------------------

constexpr int kCells = 2, kTurns = 4;  // a warp loads kCells cells together, kTurns times
constexpr int kBlockCells = kWarps * kCells * kTurns;

// A block owns kBlockCells neighbouring cells, a warp every kWarps-th group of kCells of them; its
// lanes share the channels, 32 V at a time.
template <typename T, typename D, int V>
__global__ void __launch_bounds__(kThreads, 2)
    backward_nhwc_kernel(Problem p, BackwardArgs<T, D> a, Divider row_of_cell, Divider row_of_pixel,
                         int blocks) {
  using A = acc_t<T>;
  constexpr int kStep = kWarp * V;
  __shared__ A shared[kWarps][kStep];
  __shared__ A factors[kWarps][kTurns * kCells];
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int cells = static_cast<int>(p.cells());
  const acc_t<D> threshold = widen(*a.threshold);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int block = static_cast<int>(blockIdx.x); block < blocks;
         block += static_cast<int>(gridDim.x)) {
      const auto cell_of = [&](int turn, int k) {
        return int64_t{block} * kBlockCells + (turn * kWarps + warp) * kCells + k;
      };
      A total[kTurns][kCells] = {};
      __syncwarp();  // the factors of the block before have been read
#pragma unroll 1
      for (int k = 0; k < kTurns * kCells; ++k) {
        const int64_t own = cell_of(k / kCells, k % kCells);
        const int cell = static_cast<int>(own < cells ? own : 0), y = row_of_cell(cell);
        const A factor = warp_factor_of<A>(p, a.difference + n * p.map_pixels(), threshold,
                                           row_of_pixel, y, cell - y * p.width, lane);
        if (lane == 0) factors[warp][k] = factor;
      }
      __syncwarp();
      for (int64_t first = 0; first < p.channels; first += kStep) {
        const int64_t c = first + lane * V;
        const bool active = c < p.channels;
        Vec<T, V> own = {};
        if (active) own = load<V>(a.channel_weight + n * p.channels + c);
        A part[V] = {};
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
          Vec<T, V> grad[kCells] = {}, features[kCells] = {};
#pragma unroll
          for (int k = 0; k < kCells; ++k) {
            if (!active || cell_of(turn, k) >= cells) continue;
            const int64_t at = (n * cells + cell_of(turn, k)) * p.channels + c;
            grad[k] = load<V>(a.grad + at);
            features[k] = load<V>(a.features + at);
          }
#pragma unroll
          for (int k = 0; k < kCells; ++k) {
            if (!active || cell_of(turn, k) >= cells) continue;
            Vec<T, V> d;
#pragma unroll
            for (int e = 0; e < V; ++e) {
              const A g = widen(grad[k].v[e]), f = widen(features[k].v[e]), w = widen(own.v[e]);
              const A scaled = g * factors[warp][turn * kCells + k];
              total[turn][k] += g * (f * w);
              part[e] += scaled * f;
              d.v[e] = static_cast<T>(scaled * w);
            }
            if (a.d_features != nullptr)
              store<V>(a.d_features + (n * cells + cell_of(turn, k)) * p.channels + c, d);
          }
        }
        if (a.parts == nullptr) continue;
#pragma unroll
        for (int e = 0; e < V; ++e) shared[warp][lane * V + e] = part[e];
        __syncthreads();
        for (int k = warp * kWarp + lane; k < kStep; k += kThreads) {
          A sum = 0;
#pragma unroll
          for (int w = 0; w < kWarps; ++w) sum += shared[w][k];
          if (first + k < p.channels) a.parts[(n * blocks + block) * p.channels + first + k] = sum;
        }
        __syncthreads();  // before the next channels come to shared memory
      }
      if (a.sums == nullptr) continue;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
        for (int k = 0; k < kCells; ++k) {
          const A sum = warp_sum(total[turn][k]);
          if (lane == 0 && cell_of(turn, k) < cells) a.sums[n * cells + cell_of(turn, k)] = sum;
        }
      }
    }
  }
}

// ---- what is left of the sums -------------------------------------------------------------------

constexpr int kShares = 16;

// d_channel_weight: a thread adds every 16th part of one channel. x: channels, z: images.
template <typename T, typename D>
__global__ void __launch_bounds__(kWarp* kShares)
    add_parts_kernel(Problem p, BackwardArgs<T, D> a, int blocks) {
  using A = acc_t<T>;
  __shared__ A shared[kShares][kWarp];
  const int share = static_cast<int>(threadIdx.y), column = static_cast<int>(threadIdx.x);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t first = int64_t{blockIdx.x} * kWarp; first < p.channels;
         first += int64_t{gridDim.x} * kWarp) {
      const int64_t c = first + column;
      A sum = 0;
      if (c < p.channels) {
#pragma unroll 4
        for (int block = share; block < blocks; block += kShares)
          sum += a.parts[(n * blocks + block) * p.channels + c];
      }
      shared[share][column] = sum;
      for (int d = kShares / 2; d > 0; d /= 2) {
        __syncthreads();
        if (share < d) shared[share][column] += shared[share + d][column];
      }
      if (share == 0 && c < p.channels)
        a.d_channel_weight[n * p.channels + c] = static_cast<T>(shared[0][column]);
      __syncthreads();
    }
  }
}

// The sum of a value over a block, in thread 0.
__device__ double block_sum(double value, double* shared) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kWarps; ++w) value += shared[w];
  __syncthreads();
  return value;
}

// A thread owns the map pixels of one cell.
template <typename T, typename D>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(Problem p, BackwardArgs<T, D> a, Divider row_of, int blocks) {
  using A = acc_t<T>;
  using M = acc_t<D>;
  __shared__ double shared[kWarps];
  const int cells = static_cast<int>(p.cells()), width = static_cast<int>(p.map_width());
  const M threshold = widen(*a.threshold);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int block = static_cast<int>(blockIdx.x); block < blocks;
         block += static_cast<int>(gridDim.x)) {
      const int64_t cell = int64_t{block} * kThreads + threadIdx.x;
      double total = 0;
      if (cell < cells) {
        const int y = row_of(static_cast<int>(cell)), x = static_cast<int>(cell) - y * p.width;
        const D* pixels = a.difference + n * p.map_pixels() + first_pixel(p, y, x);
        D* to = a.d_difference + (n * p.map_pixels() + first_pixel(p, y, x));
        A value = A(0.5) * a.sums[n * cells + cell];
        if (p.resize == Resize::kArea) value /= static_cast<A>(p.block_pixels());
        int chosen = 0, most = -1;  // the pixel that nearest and max read
        for (int r = 0; p.resize == Resize::kMax && r < p.block_rows; ++r) {
          for (int k = 0; k < p.block_columns; ++k) {
            const int code = code_of(widen(pixels[r * width + k]), threshold);
            if (code > most) most = code, chosen = r * width + k;
          }
        }
        for (int r = 0; r < p.block_rows; ++r) {
#pragma unroll 1  // unrolled, it spills on sm_80
          for (int k = 0; k < p.block_columns; ++k) {
            const int at = r * width + k;
            const bool reads = (p.resize == Resize::kArea || at == chosen) &&
                               is_near(widen(pixels[at]), threshold);
            if (reads) total += static_cast<double>(value);
            if (a.d_difference != nullptr)
              to[at] = static_cast<D>(reads ? static_cast<M>(value) : M(0));
          }
        }
      }
      total = block_sum(total, shared);
      if (threadIdx.x == 0) a.totals[n * blocks + block] = total;
    }
  }
}

template <typename D>
__global__ void __launch_bounds__(kThreads)
    finish_threshold_kernel(const double* totals, int64_t count, D* d_threshold) {
  __shared__ double shared[kWarps];
  double total = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < count; k += kThreads) total += totals[k];
  total = block_sum(total, shared);
  if (threadIdx.x == 0) *d_threshold = static_cast<D>(static_cast<acc_t<D>>(-total));
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

template <typename T, typename D>
bool is_wide(const Problem& p, const BackwardArgs<T, D>& a) {
  return (p.channels_last ? p.channels : p.cells()) % kVec16<T> == 0 &&
         all_aligned(a.grad, a.features, a.d_features) &&
         (!p.channels_last || all_aligned(a.channel_weight));
}

template <typename T, typename D, int V>
cudaError_t launch_features(const Problem& p, const BackwardArgs<T, D>& a, int blocks,
                            cudaStream_t stream) {
  const Divider row_of_cell(p.width);
  if (p.channels_last)
    return launch(backward_nhwc_kernel<T, D, V>, grid_of(blocks, 1, p.images), dim3(kWarp, kWarps),
                  stream, p, a, row_of_cell, Divider(p.block_columns), blocks);
  return launch(backward_nchw_kernel<T, D, V>, grid_of(blocks, 1, p.images),
                dim3(kPositions, kSlices), stream, p, a, row_of_cell,
                static_cast<int>(p.cells() / V), blocks);
}

}  // namespace

template <typename T, typename D>
int64_t blocks_of(const Problem& p, const BackwardArgs<T, D>& a) {
  if (p.channels_last) return ceil_div(p.cells(), kBlockCells);
  return ceil_div(p.cells(), kPositions * (is_wide(p, a) ? kVec16<T> : 1));
}

int64_t map_blocks_of(const Problem& p) {
  return ceil_div(p.cells(), kThreads);
}

template <typename T, typename D>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T, D>& a, cudaStream_t stream) {
  const int blocks = static_cast<int>(blocks_of(p, a));
  cudaError_t error = is_wide(p, a) ? launch_features<T, D, kVec16<T>>(p, a, blocks, stream)
                                    : launch_features<T, D, 1>(p, a, blocks, stream);
  if (error == cudaSuccess && a.parts != nullptr)
    error = launch(add_parts_kernel<T, D>, grid_of(ceil_div(p.channels, kWarp), 1, p.images),
                   dim3(kWarp, kShares), stream, p, a, blocks);
  if (error != cudaSuccess || a.sums == nullptr) return error;
  const int map_blocks = static_cast<int>(map_blocks_of(p));
  error = launch(spread_kernel<T, D>, grid_of(map_blocks, 1, p.images), dim3(kThreads), stream, p,
                 a, Divider(p.width), map_blocks);
  if (error != cudaSuccess || a.d_threshold == nullptr) return error;
  return launch(finish_threshold_kernel<D>, dim3(1), dim3(kThreads), stream,
                static_cast<const double*>(a.totals), p.images * map_blocks, a.d_threshold);
}

#define TINYOPS_INSTANTIATE(T, D)                                              \
  template int64_t blocks_of<T, D>(const Problem&, const BackwardArgs<T, D>&); \
  template cudaError_t backward_cuda<T, D>(const Problem&, const BackwardArgs<T, D>&, cudaStream_t);
TINYOPS_INSTANTIATE(float, float)
TINYOPS_INSTANTIATE(float, double)
TINYOPS_INSTANTIATE(double, float)
TINYOPS_INSTANTIATE(double, double)
TINYOPS_INSTANTIATE(__half, float)
TINYOPS_INSTANTIATE(__half, double)
TINYOPS_INSTANTIATE(__half, __half)
TINYOPS_INSTANTIATE(__nv_bfloat16, float)
TINYOPS_INSTANTIATE(__nv_bfloat16, double)
TINYOPS_INSTANTIATE(__nv_bfloat16, __nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::difference_gate
