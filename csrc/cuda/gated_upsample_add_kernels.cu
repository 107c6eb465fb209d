// The forward of gated_upsample_add on a GPU: 2.25 elements move per element of low. A thread owns
// 16 bytes of one row in a few channels, so that gates and indices are worked out once for them.
#include "gated_upsample_add.h"
#include "launch.h"

namespace tinyops::gated_upsample_add {
namespace {

using namespace cuda;

// kDouble: exactly twice the width, so that V pixels read V/2 neighbouring columns.
template <bool kDouble>
constexpr int kChannelsPerThread = kDouble ? 4 : 1;

template <typename T, int V, bool kDouble, Mode kMode>
__global__ void __launch_bounds__(kThreads, 2)
    forward_nchw_kernel(Problem p, ForwardArgs<T> a, Divider row_of, int vectors) {
  using A = acc_t<T>;
  constexpr int H = kDouble ? V / 2 : V;  // values of high that one vector of low reads
  constexpr int C = kChannelsPerThread<kDouble>;
  const int64_t low_plane = p.low_plane(), high_plane = p.high_plane();
  const int per_row = p.x.out / V;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(vectors);
         v += gridDim.x * blockDim.x) {
      const int y = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - y * per_row) * V;
      const int row = p.y.source(y) * p.x.in, at = y * p.x.out + x;
      int source[H];
#pragma unroll
      for (int k = 0; k < H; ++k) source[k] = row + (kDouble ? x / 2 + k : p.x.source(x + k));
      A gate[V], own[V];
      if constexpr (kMode != Mode::kPlain) {
        const auto low = load<V>(a.gate_low + n * low_plane + at);
        const T* high = a.gate_high + n * high_plane;
#pragma unroll
        for (int k = 0; k < V; ++k) {
          gate[k] = widen(low.v[k]) * widen(high[source[kDouble ? k / 2 : k]]);
          own[k] = A(1) + widen(low.v[k]);
        }
      }
      for (int64_t c0 = int64_t{blockIdx.y} * C; c0 < p.channels; c0 += int64_t{gridDim.y} * C) {
        const int64_t plane = n * p.channels + c0;
        Vec<T, V> low[C];
        Vec<T, H> high[C];
#pragma unroll
        for (int k = 0; k < C; ++k) {
          if (c0 + k >= p.channels) break;
          low[k] = load<V>(a.low + (plane + k) * low_plane + at);
          const T* from = a.high + (plane + k) * high_plane;
          if constexpr (kDouble) {
            high[k] = load<H>(from + source[0]);
          } else {
#pragma unroll
            for (int e = 0; e < H; ++e) high[k].v[e] = from[source[e]];
          }
        }
#pragma unroll
        for (int k = 0; k < C; ++k) {
          if (c0 + k >= p.channels) break;
          Vec<T, V> out;
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const A up = widen(high[k].v[kDouble ? e / 2 : e]);
            A value = widen(low[k].v[e]);
            if constexpr (kMode == Mode::kSelfGated) value *= own[e];
            value += kMode == Mode::kPlain ? up : gate[e] * up;
            out.v[e] = static_cast<T>(value);
          }
          store<V>(a.out + (plane + k) * low_plane + at, out);
        }
      }
    }
  }
}

// x: vectors of V channels along a row, y: rows, z: images.
template <typename T, int V, Mode kMode>
__global__ void __launch_bounds__(kThreads)
    forward_nhwc_kernel(Problem p, ForwardArgs<T> a, Divider pixel_of, int per_pixel) {
  using A = acc_t<T>;
  const unsigned vectors = static_cast<unsigned>(p.x.out) * static_cast<unsigned>(per_pixel);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int y = static_cast<int>(blockIdx.y); y < p.y.out; y += static_cast<int>(gridDim.y)) {
      const int64_t row = (n * p.y.out + y) * p.x.out;
      const int64_t source_row = (n * p.y.in + p.y.source(y)) * p.x.in;
      for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < vectors;
           v += gridDim.x * blockDim.x) {
        const int x = pixel_of(static_cast<int>(v)), c = (static_cast<int>(v) - x * per_pixel) * V;
        const int64_t pixel = row + x, source = source_row + p.x.source(x);
        const auto low = load<V>(a.low + pixel * p.channels + c);
        const auto high = load<V>(a.high + source * p.channels + c);
        A gate = 1, own = 1;
        if constexpr (kMode != Mode::kPlain) {
          const A gate_low = widen(a.gate_low[pixel]);
          gate = gate_low * widen(a.gate_high[source]);
          if constexpr (kMode == Mode::kSelfGated) own = A(1) + gate_low;
        }
        Vec<T, V> out;
#pragma unroll
        for (int e = 0; e < V; ++e)
          out.v[e] = static_cast<T>(own * widen(low.v[e]) + gate * widen(high.v[e]));
        store<V>(a.out + pixel * p.channels + c, out);
      }
    }
  }
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

template <typename T, int V, bool kDouble, Mode kMode>
cudaError_t launch_forward_nchw(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  const int64_t vectors = p.low_plane() / V;
  return launch(forward_nchw_kernel<T, V, kDouble, kMode>,
                grid_of(ceil_div(vectors, kThreads),
                        ceil_div(p.channels, kChannelsPerThread<kDouble>), p.images),
                dim3(kThreads), stream, p, a, Divider(p.x.out / V), static_cast<int>(vectors));
}

template <typename T, int V, Mode kMode>
cudaError_t launch_forward_nhwc(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  const int64_t per_pixel = p.channels / V;
  return launch(forward_nhwc_kernel<T, V, kMode>,
                grid_of(ceil_div(p.x.out * per_pixel, kThreads), p.y.out, p.images), dim3(kThreads),
                stream, p, a, Divider(per_pixel), static_cast<int>(per_pixel));
}

}  // namespace

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  constexpr int V = kVec16<T>;
  const int64_t line = p.channels_last ? p.channels : p.x.out;
  const bool wide = line % V == 0 && all_aligned(a.low, a.high, a.gate_low, a.gate_high, a.out);
  return for_mode(p.mode, [&](auto mode) {
    constexpr Mode kMode = decltype(mode)::value;
    if (p.channels_last)
      return wide ? launch_forward_nhwc<T, V, kMode>(p, a, stream)
                  : launch_forward_nhwc<T, 1, kMode>(p, a, stream);
    if (wide && p.x.doubles()) return launch_forward_nchw<T, V, true, kMode>(p, a, stream);
    return wide ? launch_forward_nchw<T, V, false, kMode>(p, a, stream)
                : launch_forward_nchw<T, 1, false, kMode>(p, a, stream);
  });
}

#define TINYOPS_INSTANTIATE(T) \
  template cudaError_t forward_cuda<T>(const Problem&, const ForwardArgs<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::gated_upsample_add
