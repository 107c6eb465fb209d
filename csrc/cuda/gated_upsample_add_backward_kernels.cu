// The backward of gated_upsample_add on a GPU. Per element of low 1.5 elements move (3.5 with
// self_gate) in NHWC and, upsampling by 2, in NCHW. Gradients of features are gathered by their
// owner; gradients of gates are sums over channels, added up in a fixed order in registers, then in
// shared memory or across a warp. No atomics: the same bits every time.
#include "gated_upsample_add.h"
#include "launch.h"

namespace tinyops::gated_upsample_add {
namespace {

using namespace cuda;

// ---- backward, NCHW, exactly twice both sizes ---------------------------------------------------

constexpr int kPositions = 16, kSlices = 16;  // of a block: 16-byte vectors, and shares of channels

// A thread owns V/2 source cells, that is V pixels of two rows, in every 16th channel.
template <typename T, int V, bool kSelf>
__global__ void __launch_bounds__(kPositions* kSlices, 2)
    backward_double_kernel(Problem p, BackwardArgs<T> a, Divider row_of, int vectors) {
  using A = acc_t<T>;
  constexpr int H = V / 2, kValues = (kSelf ? 4 : 2) * V;
  __shared__ A shared[kValues][kSlices][kPositions];
  const int slice = static_cast<int>(threadIdx.y), width = p.x.out, per_row = width / V;
  const int64_t low_plane = p.low_plane(), high_plane = p.high_plane();
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (unsigned block = blockIdx.x * kPositions; block < static_cast<unsigned>(vectors);
         block += gridDim.x * kPositions) {
      const unsigned v = block + threadIdx.x;
      const bool active = v < static_cast<unsigned>(vectors);
      const int i = active ? row_of(static_cast<int>(v)) : 0;
      const int x = active ? (static_cast<int>(v) - i * per_row) * V : 0;
      const int at = 2 * i * width + x, source = i * p.x.in + x / 2;
      A gate_low[2][V], gate_high[H], product[2][V] = {}, own[2][V] = {};
      if (active) {
        const auto high = load<H>(a.gate_high + n * high_plane + source);
#pragma unroll
        for (int e = 0; e < H; ++e) gate_high[e] = widen(high.v[e]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const auto low = load<V>(a.gate_low + n * low_plane + at + r * width);
#pragma unroll
          for (int e = 0; e < V; ++e) gate_low[r][e] = widen(low.v[e]);
        }
        for (int64_t c = slice; c < p.channels; c += kSlices) {
          const int64_t plane = n * p.channels + c;
          const auto features = load<H>(a.high + plane * high_plane + source);
          Vec<T, V> g[2], low[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            g[r] = load<V>(a.grad + plane * low_plane + at + r * width);
            if constexpr (kSelf) low[r] = load<V>(a.low + plane * low_plane + at + r * width);
          }
          A sum[H] = {};
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            Vec<T, V> d_low;
#pragma unroll
            for (int e = 0; e < V; ++e) {
              const A value = widen(g[r].v[e]);
              product[r][e] += value * widen(features.v[e / 2]);
              sum[e / 2] += value * gate_low[r][e];
              if constexpr (kSelf) {
                own[r][e] += value * widen(low[r].v[e]);
                d_low.v[e] = static_cast<T>(value * (A(1) + gate_low[r][e]));
              }
            }
            if constexpr (kSelf) store<V>(a.d_low + plane * low_plane + at + r * width, d_low);
          }
          Vec<T, H> d_high;
#pragma unroll
          for (int e = 0; e < H; ++e) d_high.v[e] = static_cast<T>(sum[e] * gate_high[e]);
          store<H>(a.d_high + plane * high_plane + source, d_high);
        }
      }

#pragma unroll
      for (int e = 0; e < 2 * V; ++e) {
        shared[e][slice][threadIdx.x] = product[e / V][e % V];
        if constexpr (kSelf) shared[2 * V + e][slice][threadIdx.x] = own[e / V][e % V];
      }
      for (int d = kSlices / 2; d > 0; d /= 2) {
        __syncthreads();
        if (slice < d) {
#pragma unroll
          for (int e = 0; e < kValues; ++e)
            shared[e][slice][threadIdx.x] += shared[e][slice + d][threadIdx.x];
        }
      }
      if (active && slice == 0) {
        A sum[H] = {};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          Vec<T, V> d_low;
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const A total = shared[r * V + e][0][threadIdx.x];
            A d = gate_high[e / 2] * total;
            if constexpr (kSelf) d += shared[2 * V + r * V + e][0][threadIdx.x];
            d_low.v[e] = static_cast<T>(d);
            sum[e / 2] += gate_low[r][e] * total;
          }
          store<V>(a.d_gate_low + n * low_plane + at + r * width, d_low);
        }
        Vec<T, H> d_high;
#pragma unroll
        for (int e = 0; e < H; ++e) d_high.v[e] = static_cast<T>(sum[e]);
        store<H>(a.d_gate_high + n * high_plane + source, d_high);
      }
      __syncthreads();  // before the next turn writes to shared memory
    }
  }
}

// Without gates: the sum over the 2 x V pixels of V/2 source cells. x: vectors, y: planes.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    backward_plain_double_kernel(Problem p, BackwardArgs<T> a, Divider row_of, int vectors) {
  constexpr int H = V / 2;
  const int width = p.x.out, per_row = width / V;
  for (int64_t plane = blockIdx.y; plane < p.images * p.channels; plane += gridDim.y) {
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(vectors);
         v += gridDim.x * blockDim.x) {
      const int i = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - i * per_row) * V;
      const T* grad = a.grad + plane * p.low_plane() + 2 * i * width + x;
      const auto top = load<V>(grad), bottom = load<V>(grad + width);
      Vec<T, H> d;
#pragma unroll
      for (int e = 0; e < H; ++e)
        d.v[e] = static_cast<T>((widen(top.v[2 * e]) + widen(top.v[2 * e + 1])) +
                                (widen(bottom.v[2 * e]) + widen(bottom.v[2 * e + 1])));
      store<H>(a.d_high + plane * p.high_plane() + i * p.x.in + x / 2, d);
    }
  }
}

// ---- backward, NCHW, any sizes ------------------------------------------------------------------

// d_high: a thread owns one source cell of one plane and gathers the pixels that read it.
template <typename T, bool kGated>
__global__ void __launch_bounds__(kThreads)
    backward_high_kernel(Problem p, BackwardArgs<T> a, Divider row_of) {
  using A = acc_t<T>;
  const unsigned cells = static_cast<unsigned>(p.high_plane());
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t c = blockIdx.y; c < p.channels; c += gridDim.y) {
      const int64_t plane = n * p.channels + c;
      for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < cells;
           v += gridDim.x * blockDim.x) {
        const int i = row_of(static_cast<int>(v)), j = static_cast<int>(v) - i * p.x.in;
        A sum = 0;
        for (int y = p.y.first(i); y < p.y.first(i + 1); ++y) {
          for (int x = p.x.first(j); x < p.x.first(j + 1); ++x) {
            A value = widen(a.grad[plane * p.low_plane() + y * p.x.out + x]);
            if constexpr (kGated) value *= widen(a.gate_low[n * p.low_plane() + y * p.x.out + x]);
            sum += value;
          }
        }
        if constexpr (kGated) sum *= widen(a.gate_high[n * p.high_plane() + v]);
        a.d_high[plane * p.high_plane() + v] = static_cast<T>(sum);
      }
    }
  }
}

constexpr int kPixels = 32, kShares = kThreads / kPixels;

// product = sum_c grad * up(high), and with it d_gate_low (and d_low): a thread owns one pixel in
// every 8th channel.
template <typename T, bool kSelf>
__global__ void __launch_bounds__(kThreads)
    backward_product_kernel(Problem p, BackwardArgs<T> a, Divider row_of, acc_t<T>* products) {
  using A = acc_t<T>;
  __shared__ A shared[2][kShares][kPixels];
  const int share = static_cast<int>(threadIdx.y);
  const unsigned pixels = static_cast<unsigned>(p.low_plane());
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (unsigned block = blockIdx.x * kPixels; block < pixels; block += gridDim.x * kPixels) {
      const unsigned v = block + threadIdx.x;
      const bool active = v < pixels;
      A product = 0, own = 0, gate = 0;
      int source = 0;
      if (active) {
        const int y = row_of(static_cast<int>(v)), x = static_cast<int>(v) - y * p.x.out;
        source = p.y.source(y) * p.x.in + p.x.source(x);
        gate = widen(a.gate_low[n * p.low_plane() + v]);
        for (int64_t c = share; c < p.channels; c += kShares) {
          const int64_t plane = n * p.channels + c;
          const A g = widen(a.grad[plane * p.low_plane() + v]);
          product += g * widen(a.high[plane * p.high_plane() + source]);
          if constexpr (kSelf) {
            own += g * widen(a.low[plane * p.low_plane() + v]);
            a.d_low[plane * p.low_plane() + v] = static_cast<T>(g * (A(1) + gate));
          }
        }
      }
      shared[0][share][threadIdx.x] = product;
      shared[1][share][threadIdx.x] = own;
      for (int d = kShares / 2; d > 0; d /= 2) {
        __syncthreads();
        if (share < d) {
          shared[0][share][threadIdx.x] += shared[0][share + d][threadIdx.x];
          shared[1][share][threadIdx.x] += shared[1][share + d][threadIdx.x];
        }
      }
      if (active && share == 0) {
        const A total = shared[0][0][threadIdx.x];
        products[n * p.low_plane() + v] = total;
        const A d = widen(a.gate_high[n * p.high_plane() + source]) * total;
        a.d_gate_low[n * p.low_plane() + v] = static_cast<T>(d + shared[1][0][threadIdx.x]);
      }
      __syncthreads();  // before the next turn writes to shared memory
    }
  }
}

// d_gate_high from the products: a thread owns one source cell.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_gate_high_kernel(Problem p, BackwardArgs<T> a, Divider row_of,
                              const acc_t<T>* products) {
  const unsigned cells = static_cast<unsigned>(p.high_plane());
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < cells;
         v += gridDim.x * blockDim.x) {
      const int i = row_of(static_cast<int>(v)), j = static_cast<int>(v) - i * p.x.in;
      acc_t<T> sum = 0;
      for (int y = p.y.first(i); y < p.y.first(i + 1); ++y) {
        for (int x = p.x.first(j); x < p.x.first(j + 1); ++x) {
          const int64_t pixel = n * p.low_plane() + y * p.x.out + x;
          sum += widen(a.gate_low[pixel]) * products[pixel];
        }
      }
      a.d_gate_high[n * p.high_plane() + v] = static_cast<T>(sum);
    }
  }
}

// ---- backward, NHWC, any sizes ------------------------------------------------------------------

constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kChunks = 2;  // vectors of channels that a lane keeps in registers

// A warp owns one source cell, its lanes share the channels. kResident: all channels fit into the
// registers of the warp, so that every gradient is read once; otherwise it is read once more, from
// the cache.
template <typename T, int V, bool kResident, Mode kMode>
__global__ void __launch_bounds__(kThreads, kResident ? 3 : 2)
    backward_nhwc_kernel(Problem p, BackwardArgs<T> a) {
  using A = acc_t<T>;
  constexpr bool kGated = kMode != Mode::kPlain, kSelf = kMode == Mode::kSelfGated;
  const int lane = static_cast<int>(threadIdx.x), step = kWarp * V;
  const int channels = static_cast<int>(p.channels);
  // By way of a shuffle, so that the compiler knows it to be the same in the whole warp.
  const unsigned warp = __shfl_sync(0xffffffffu, threadIdx.y, 0);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int i = static_cast<int>(blockIdx.y); i < p.y.in; i += static_cast<int>(gridDim.y)) {
      for (unsigned column = blockIdx.x * kWarps + warp; column < static_cast<unsigned>(p.x.in);
           column += gridDim.x * kWarps) {
        const int j = static_cast<int>(column);
        const int64_t source = (n * p.y.in + i) * p.x.in + j;
        const A gate_high = kGated ? widen(a.gate_high[source]) : A(1);
        A sum[kChunks][V] = {}, d_gate_high = 0;
        for (int y = p.y.first(i); y < p.y.first(i + 1); ++y) {
          for (int x = p.x.first(j); x < p.x.first(j + 1); ++x) {
            const int64_t pixel = (n * p.y.out + y) * p.x.out + x;
            const A gate_low = kGated ? widen(a.gate_low[pixel]) : A(1);
            A product = 0, own = 0;
            const auto add = [&](int c, A(&to)[V]) {
              const auto g = load<V>(a.grad + pixel * channels + c);
              Vec<T, V> high, low, d_low;
              if constexpr (kGated) high = load<V>(a.high + source * channels + c);
              if constexpr (kSelf) low = load<V>(a.low + pixel * channels + c);
#pragma unroll
              for (int e = 0; e < V; ++e) {
                const A value = widen(g.v[e]);
                to[e] += gate_low * value;
                if constexpr (kGated) product += value * widen(high.v[e]);
                if constexpr (kSelf) {
                  own += value * widen(low.v[e]);
                  d_low.v[e] = static_cast<T>(value * (A(1) + gate_low));
                }
              }
              if constexpr (kSelf) store<V>(a.d_low + pixel * channels + c, d_low);
            };
            if constexpr (kResident) {
#pragma unroll
              for (int k = 0; k < kChunks; ++k)
                if (lane * V + k * step < channels) add(lane * V + k * step, sum[k]);
            } else {
#pragma unroll 2
              for (int c = lane * V; c < channels; c += step) add(c, sum[0]);
            }
            if constexpr (kGated) {
              product = warp_sum(product);
              if constexpr (kSelf) own = warp_sum(own);
              if (lane == 0) a.d_gate_low[pixel] = static_cast<T>(gate_high * product + own);
              d_gate_high += gate_low * product;
            }
          }
        }
        if constexpr (kGated) {
          if (lane == 0) a.d_gate_high[source] = static_cast<T>(d_gate_high);
        }
        const auto write = [&](int c, const A(&from)[V]) {
          Vec<T, V> d;
#pragma unroll
          for (int e = 0; e < V; ++e) d.v[e] = static_cast<T>(gate_high * from[e]);
          store<V>(a.d_high + source * channels + c, d);
        };
        if constexpr (kResident) {
#pragma unroll
          for (int k = 0; k < kChunks; ++k)
            if (lane * V + k * step < channels) write(lane * V + k * step, sum[k]);
        } else {
          for (int c = lane * V; c < channels; c += step) {
            A again[V] = {};
#pragma unroll 1
            for (int y = p.y.first(i); y < p.y.first(i + 1); ++y) {
#pragma unroll 2
              for (int x = p.x.first(j); x < p.x.first(j + 1); ++x) {
                const int64_t pixel = (n * p.y.out + y) * p.x.out + x;
                const A gate_low = kGated ? widen(a.gate_low[pixel]) : A(1);
                const auto g = load<V>(a.grad + pixel * channels + c);
#pragma unroll
                for (int e = 0; e < V; ++e) again[e] += gate_low * widen(g.v[e]);
              }
            }
            write(c, again);
          }
        }
      }
    }
  }
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

template <typename T, int V, Mode kMode>
cudaError_t launch_backward_nhwc(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const auto kernel = p.channels <= kChunks * kWarp * V ? backward_nhwc_kernel<T, V, true, kMode>
                                                        : backward_nhwc_kernel<T, V, false, kMode>;
  return launch(kernel, grid_of(ceil_div(p.x.in, kWarps), p.y.in, p.images), dim3(kWarp, kWarps),
                stream, p, a);
}

template <typename T, int V>
cudaError_t launch_backward_double(const Problem& p, const BackwardArgs<T>& a,
                                   cudaStream_t stream) {
  const int64_t vectors = p.low_plane() / 2 / V;
  const Divider row_of(p.x.out / V);
  if (p.mode == Mode::kPlain)
    return launch(backward_plain_double_kernel<T, V>,
                  grid_of(ceil_div(vectors, kThreads), p.images * p.channels, 1), dim3(kThreads),
                  stream, p, a, row_of, static_cast<int>(vectors));
  return launch(p.mode == Mode::kSelfGated ? backward_double_kernel<T, V, true>
                                           : backward_double_kernel<T, V, false>,
                grid_of(ceil_div(vectors, kPositions), 1, p.images), dim3(kPositions, kSlices),
                stream, p, a, row_of, static_cast<int>(vectors));
}

template <typename T>
cudaError_t launch_backward_any(const Problem& p, const BackwardArgs<T>& a, acc_t<T>* products,
                                cudaStream_t stream) {
  const bool gated = p.mode != Mode::kPlain;
  const Divider low_row(p.x.out), high_row(p.x.in);
  const int64_t cell_blocks = ceil_div(p.high_plane(), kThreads);
  cudaError_t error = cudaSuccess;
  if (p.channels > 0)
    error =
        launch(gated ? backward_high_kernel<T, true> : backward_high_kernel<T, false>,
               grid_of(cell_blocks, p.channels, p.images), dim3(kThreads), stream, p, a, high_row);
  if (error != cudaSuccess || !gated) return error;
  if (p.low_plane() > 0)
    error = launch(p.mode == Mode::kSelfGated ? backward_product_kernel<T, true>
                                              : backward_product_kernel<T, false>,
                   grid_of(ceil_div(p.low_plane(), kPixels), 1, p.images), dim3(kPixels, kShares),
                   stream, p, a, low_row, products);
  if (error != cudaSuccess) return error;
  return launch(backward_gate_high_kernel<T>, grid_of(cell_blocks, 1, p.images), dim3(kThreads),
                stream, p, a, high_row, static_cast<const acc_t<T>*>(products));
}

template <typename T>
bool is_aligned(const BackwardArgs<T>& a) {
  return all_aligned(a.grad, a.low, a.high, a.gate_low, a.gate_high, a.d_low, a.d_high,
                     a.d_gate_low, a.d_gate_high);
}
// Whether one kernel does it all in NCHW: rows of pairs, aligned for the two pixels of a pair.
template <typename T>
bool is_double(const Problem& p, const BackwardArgs<T>& a) {
  return p.y.doubles() && p.x.doubles() && is_aligned(a);
}

}  // namespace

template <typename T>
int64_t backward_scratch(const Problem& p, const BackwardArgs<T>& a) {
  const bool none = p.mode == Mode::kPlain || p.channels_last || is_double(p, a);
  return none ? 0 : p.images * p.low_plane();
}

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& a, acc_t<T>* products,
                          cudaStream_t stream) {
  constexpr int V = kVec16<T>;
  if (p.channels_last)
    return for_mode(p.mode, [&](auto mode) {
      constexpr Mode kMode = decltype(mode)::value;
      return is_aligned(a) && p.channels % V == 0 ? launch_backward_nhwc<T, V, kMode>(p, a, stream)
                                                  : launch_backward_nhwc<T, 1, kMode>(p, a, stream);
    });
  if (!is_double(p, a)) return launch_backward_any<T>(p, a, products, stream);
  return p.x.out % V == 0 ? launch_backward_double<T, V>(p, a, stream)
                          : launch_backward_double<T, 2>(p, a, stream);
}

#define TINYOPS_INSTANTIATE(T)                                                             \
  template cudaError_t backward_cuda<T>(const Problem&, const BackwardArgs<T>&, acc_t<T>*, \
                                        cudaStream_t);                                     \
  template int64_t backward_scratch<T>(const Problem&, const BackwardArgs<T>&);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::gated_upsample_add
