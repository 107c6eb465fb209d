// The forward of the pixel shuffles on a GPU: 2 elements move per element of the output, 3 with a
// residual. Sub-pixels are interleaved in registers; stores have 16 bytes wherever sizes allow it.
#include "pixel_shuffle_access.h"

namespace tinyops::pixel_shuffle {
namespace {

// x: runs of K elements of content in one plane, y: channels of the output, z: images. A thread
// writes kUp rows of K * kUp elements, N at a time.
template <typename T, int kUp, int K, int N, Join kJoin>
__global__ void __launch_bounds__(kThreads)
    forward_nchw_kernel(Problem p, ForwardArgs<T> a, Divider row_of, int runs) {
  using A = acc_t<T>;
  constexpr int kVectors = K * kUp / N;  // of a row
  const A slope = static_cast<A>(p.negative_slope);
  const int width = static_cast<int>(p.width), per_row = width / K, wide = kUp * width;
  const int64_t step = p.part_step() * p.plane();
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t c = blockIdx.y; c < p.outer_channels; c += gridDim.y) {
      T* out = a.out + (n * p.outer_channels + c) * p.wide_plane();
      const bool copied = kJoin == Join::kConcat && c >= p.channels;
      const int64_t plane = n * (p.outer_channels - p.channels) + c - p.channels;
      const T* other = kJoin == Join::kAdd ? a.other + (n * p.channels + c) * p.wide_plane()
                       : copied            ? a.other + plane * p.wide_plane()
                                           : nullptr;
      const T* content =
          copied ? nullptr
                 : a.content + (n * p.channels * p.parts() + c * p.channel_step()) * p.plane();
      for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(runs);
           v += gridDim.x * blockDim.x) {
        const int y = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - y * per_row) * K;
        const int to = kUp * (y * wide + x);
        if (copied) {
          Vec<T, N> row[kUp][kVectors];
#pragma unroll
          for (int s = 0; s < kUp * kVectors; ++s)
            row[s / kVectors][s % kVectors] =
                load<N>(other + to + s / kVectors * wide + s % kVectors * N);
#pragma unroll
          for (int s = 0; s < kUp * kVectors; ++s)
            store<N>(out + to + s / kVectors * wide + s % kVectors * N,
                     row[s / kVectors][s % kVectors]);
          continue;
        }
        // Rows whose loads go out together; one by one, too many would not fit into registers.
        constexpr int kRows = N == 1 ? 1 : kUp;
#pragma unroll 1
        for (int first = 0; first < kUp; first += kRows) {
          // Before any store, past which the compiler may not move a load.
          Vec<T, K> from[kRows][kUp];
#pragma unroll
          for (int k = 0; k < kRows * kUp; ++k)
            from[k / kUp][k % kUp] = load<K>(content + (first * kUp + k) * step + y * width + x);
          Vec<T, N> residual[kJoin == Join::kAdd ? kRows : 1][kVectors];
          if constexpr (kJoin == Join::kAdd) {
#pragma unroll
            for (int s = 0; s < kRows * kVectors; ++s)
              residual[s / kVectors][s % kVectors] =
                  load<N>(other + to + (first + s / kVectors) * wide + s % kVectors * N);
          }
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int s = 0; s < kVectors; ++s) {
              Vec<T, N> row;
#pragma unroll
              for (int e = 0; e < N; ++e) {
                const int k = s * N + e;
                const A read = widen(from[i][k % kUp].v[k / kUp]);
                A value = leaky(read, read, slope);
                if constexpr (kJoin == Join::kAdd) value += widen(residual[i][s].v[e]);
                row.v[e] = static_cast<T>(value);
              }
              store<N>(out + to + (first + i) * wide + s * N, row);
            }
          }
        }
      }
    }
  }
}

// x: groups of C channels along a row of content, the copied ones included, y: rows of content, z:
// images. N: elements of content in one access.
template <typename T, int kUp, int C, int N, Join kJoin, Group kGroup>
__global__ void __launch_bounds__(kThreads)
    forward_nhwc_kernel(Problem p, ForwardArgs<T> a, Divider pixel_of, int per_pixel) {
  using A = acc_t<T>;
  constexpr int kParts = kUp * kUp;
  const A slope = static_cast<A>(p.negative_slope);
  const int width = static_cast<int>(p.width), wide = kUp * width;
  const int channels = static_cast<int>(p.channels), outer = static_cast<int>(p.outer_channels);
  const unsigned groups = static_cast<unsigned>(width) * static_cast<unsigned>(per_pixel);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t y = blockIdx.y; y < p.height; y += gridDim.y) {
      const int64_t row = n * p.height + y;
      for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < groups;
           v += gridDim.x * blockDim.x) {
        const int x = pixel_of(static_cast<int>(v));
        const int c = (static_cast<int>(v) - x * per_pixel) * C;
        // The first of the kUp x kUp pixels; offsets from there are 32-bit only within a row.
        const int64_t first = row * kUp * wide + kUp * x;
        if (kJoin == Join::kConcat && c >= channels) {
          const T* from = a.other + first * (outer - channels) + c - channels;
          Vec<T, C> copied[kParts];
#pragma unroll
          for (int k = 0; k < kParts; ++k)
            copied[k] = load<C>(from + int64_t{k / kUp} * wide * (outer - channels) +
                                k % kUp * (outer - channels));
#pragma unroll
          for (int k = 0; k < kParts; ++k)
            store<C>(a.out + (first + k / kUp * wide + k % kUp) * outer + c, copied[k]);
          continue;
        }
        Pixel<T, C, kParts, N, kGroup> pixel;
        pixel.load_from(p, a.content + (row * width + x) * channels * kParts, c);
#pragma unroll
        for (int i = 0; i < kUp; ++i) {
          const int64_t at = (first + i * wide) * outer + c;
          Vec<T, C> residual[kUp];  // loaded before any store of the row
          if constexpr (kJoin == Join::kAdd) {
#pragma unroll
            for (int j = 0; j < kUp; ++j) residual[j] = load<C>(a.other + at + j * outer);
          }
#pragma unroll
          for (int j = 0; j < kUp; ++j) {
            Vec<T, C> out;
#pragma unroll
            for (int e = 0; e < C; ++e) {
              const A read = widen(pixel.at(i * kUp + j, e));
              A value = leaky(read, read, slope);
              if constexpr (kJoin == Join::kAdd) value += widen(residual[j].v[e]);
              out.v[e] = static_cast<T>(value);
            }
            store<C>(a.out + at + j * outer, out);
          }
        }
      }
    }
  }
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

template <typename T, int kUp, int K, int N, Join kJoin>
cudaError_t launch_nchw(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  const int64_t per_row = p.width / K, runs = p.height * per_row;
  return launch(forward_nchw_kernel<T, kUp, K, N, kJoin>,
                grid_of(ceil_div(runs, kThreads), p.outer_channels, p.images), dim3(kThreads),
                stream, p, a, Divider(per_row), static_cast<int>(runs));
}

template <typename T, int kUp, int C, int N, Join kJoin, Group kGroup>
cudaError_t launch_nhwc(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  const int64_t per_pixel = p.outer_channels / C;
  return launch(forward_nhwc_kernel<T, kUp, C, N, kJoin, kGroup>,
                grid_of(ceil_div(p.width * per_pixel, kThreads), p.height, p.images),
                dim3(kThreads), stream, p, a, Divider(per_pixel), static_cast<int>(per_pixel));
}

}  // namespace

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  const bool aligned = all_aligned(a.content, a.other, a.out);
  return for_upscale(p.upscale, [&](auto up) {
    constexpr int kUp = decltype(up)::value;
    return for_bool(a.join == Join::kAdd, [&](auto add) {
      constexpr Join kJoin = decltype(add)::value ? Join::kAdd : Join::kConcat;
      if (p.channels_last) {
        constexpr int C = kWidth<T, kUp, true>;
        if (!aligned || p.channels % C != 0 || p.outer_channels % C != 0)
          return launch_nhwc<T, kUp, 1, 1, kJoin, Group::kElement>(p, a, stream);
        return p.order == Order::kDcr ? launch_nhwc<T, kUp, C, C, kJoin, Group::kDcr>(p, a, stream)
                                      : launch_nhwc<T, kUp, C, C, kJoin, Group::kCrd>(p, a, stream);
      }
      constexpr int K = kRun<T, kUp>, N = kWidth<T, kUp, false>;
      return aligned && p.width % K == 0 ? launch_nchw<T, kUp, K, N, kJoin>(p, a, stream)
                                         : launch_nchw<T, kUp, 1, 1, kJoin>(p, a, stream);
    });
  });
}

#define TINYOPS_INSTANTIATE(T) \
  template cudaError_t forward_cuda<T>(const Problem&, const ForwardArgs<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::pixel_shuffle
