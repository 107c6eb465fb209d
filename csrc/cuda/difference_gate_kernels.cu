// The forward of difference_gate on a GPU: 2 elements move per element of features. Masks are made
// from the map where they are used, once for many channels: no mask is written.
#include "difference_gate.h"
#include "difference_gate_mask.h"
#include "launch.h"

namespace tinyops::difference_gate {
namespace {

using namespace cuda;

constexpr int kGroup = 4;          // channels that a thread loads together
constexpr int kMostChannels = 64;  // that a thread makes a mask for
constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kCells = 4;  // of a warp in NHWC

// A thread owns V cells of a row in `share` channels. x: vectors, y: shares of channels.
template <typename T, typename D, int V>
__global__ void __launch_bounds__(kThreads, 2)
    forward_nchw_kernel(Problem p, ForwardArgs<T, D> a, Divider row_of, int vectors, int share) {
  using A = acc_t<T>;
  const int64_t cells = p.cells();
  const int per_row = p.width / V;
  const acc_t<D> threshold = widen(*a.threshold);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(vectors);
         v += gridDim.x * blockDim.x) {
      const int y = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - y * per_row) * V;
      const int at = y * p.width + x;
      A factor[V];
      factors_of(p, a.difference + n * p.map_pixels(), threshold, y, x, factor);
      for (int64_t first = int64_t{blockIdx.y} * share; first < p.channels;
           first += int64_t{gridDim.y} * share) {
        const int64_t last = first + share < p.channels ? first + share : p.channels;
        for (int64_t c = first; c < last; c += kGroup) {
          Vec<T, V> features[kGroup];
          A weight[kGroup];
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
            if (c + k >= last) break;
            features[k] = load<V>(a.features + (n * p.channels + c + k) * cells + at);
            weight[k] = widen(a.channel_weight[n * p.channels + c + k]);
          }
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
            if (c + k >= last) break;
            Vec<T, V> out;
#pragma unroll
            for (int e = 0; e < V; ++e)
              out.v[e] = static_cast<T>(widen(features[k].v[e]) * weight[k] * factor[e]);
            store<V>(a.out + (n * p.channels + c + k) * cells + at, out);
          }
        }
      }
    }
  }
}

// A warp owns kCells neighbouring cells, its lanes share the channels.
template <typename T, typename D, int V>
__global__ void __launch_bounds__(kThreads)
    forward_nhwc_kernel(Problem p, ForwardArgs<T, D> a, Divider row_of, Divider row_of_pixel) {
  using A = acc_t<T>;
  const int lane = static_cast<int>(threadIdx.x), cells = static_cast<int>(p.cells());
  const acc_t<D> threshold = widen(*a.threshold);
  const int64_t per_step = int64_t{kWarps} * kCells;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t start = blockIdx.x * per_step + threadIdx.y * kCells; start < cells;
         start += gridDim.x * per_step) {
      const int first = static_cast<int>(start);
      A factor[kCells];
#pragma unroll
      for (int k = 0; k < kCells; ++k) {
        const int cell = first + k < cells ? first + k : cells - 1;
        const int y = row_of(cell), x = cell - y * p.width;
        factor[k] = warp_factor_of<A>(p, a.difference + n * p.map_pixels(), threshold, row_of_pixel,
                                      y, x, lane);
      }
      for (int64_t c = lane * V; c < p.channels; c += kWarp * V) {
        const auto weight = load<V>(a.channel_weight + n * p.channels + c);
        Vec<T, V> features[kCells];
#pragma unroll
        for (int k = 0; k < kCells; ++k)
          if (first + k < cells)
            features[k] = load<V>(a.features + (n * cells + first + k) * p.channels + c);
#pragma unroll
        for (int k = 0; k < kCells; ++k) {
          if (first + k >= cells) break;
          Vec<T, V> out;
#pragma unroll
          for (int e = 0; e < V; ++e)
            out.v[e] = static_cast<T>(widen(features[k].v[e]) * widen(weight.v[e]) * factor[k]);
          store<V>(a.out + (n * cells + first + k) * p.channels + c, out);
        }
      }
    }
  }
}

// Few channels a thread where that fills the GPU, many where masks would be made too often.
int share_of(const Problem& p, int64_t blocks) {
  constexpr int64_t kEnough = 2048;  // blocks for the largest GPUs
  int64_t share = kMostChannels;
  while (share > kGroup && blocks * ceil_div(p.channels, share) * p.images < kEnough) share /= 2;
  return static_cast<int>(share);
}

template <typename T, typename D, int V>
cudaError_t launch_forward(const Problem& p, const ForwardArgs<T, D>& a, cudaStream_t stream) {
  if (p.channels_last)
    return launch(forward_nhwc_kernel<T, D, V>,
                  grid_of(ceil_div(p.cells(), kWarps * kCells), 1, p.images), dim3(kWarp, kWarps),
                  stream, p, a, Divider(p.width), Divider(p.block_columns));
  const int64_t vectors = p.cells() / V, blocks = ceil_div(vectors, kThreads);
  const int share = share_of(p, blocks);
  return launch(forward_nchw_kernel<T, D, V>,
                grid_of(blocks, ceil_div(p.channels, share), p.images), dim3(kThreads), stream, p,
                a, Divider(p.width / V), static_cast<int>(vectors), share);
}

}  // namespace

template <typename T, typename D>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T, D>& a, cudaStream_t stream) {
  constexpr int V = kVec16<T>;
  const int64_t line = p.channels_last ? p.channels : p.width;
  const bool wide = line % V == 0 && all_aligned(a.features, a.out) &&
                    (!p.channels_last || all_aligned(a.channel_weight));
  return wide ? launch_forward<T, D, V>(p, a, stream) : launch_forward<T, D, 1>(p, a, stream);
}

#define TINYOPS_INSTANTIATE(T, D) \
  template cudaError_t forward_cuda<T, D>(const Problem&, const ForwardArgs<T, D>&, cudaStream_t);
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
