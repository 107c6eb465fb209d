// The backward of the pixel shuffles on a GPU: 2 elements move per element of content, 3 with an
// activation, whose sign is that of content. Sub-pixels are taken apart in registers.
#include "pixel_shuffle_access.h"

namespace tinyops::pixel_shuffle {
namespace {

// x: runs of K elements of content in one plane, y: shuffled channels, z: images. A thread reads
// kUp rows of K * kUp elements of grad, N at a time.
template <typename T, int kUp, int K, int N>
__global__ void __launch_bounds__(kThreads)
    backward_nchw_kernel(Problem p, BackwardArgs<T> a, Divider row_of, int runs) {
  using A = acc_t<T>;
  constexpr int kVectors = K * kUp / N;  // of a row
  const A slope = static_cast<A>(p.negative_slope);
  const bool active = a.content != nullptr;
  const int width = static_cast<int>(p.width), per_row = width / K, wide = kUp * width;
  const int64_t step = p.part_step() * p.plane();
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t c = blockIdx.y; c < p.channels; c += gridDim.y) {
      const T* grad = a.grad + (n * p.outer_channels + c) * p.wide_plane();
      const int64_t source = (n * p.channels * p.parts() + c * p.channel_step()) * p.plane();
      for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(runs);
           v += gridDim.x * blockDim.x) {
        const int y = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - y * per_row) * K;
        const int from = kUp * (y * wide + x);
        Vec<T, N> rows[kUp][kVectors];
#pragma unroll
        for (int s = 0; s < kUp * kVectors; ++s)
          rows[s / kVectors][s % kVectors] =
              load<N>(grad + from + s / kVectors * wide + s % kVectors * N);
        const int64_t to = source + y * width + x;
        Vec<T, K> content[kUp * kUp];
        if (active) {
#pragma unroll
          for (int k = 0; k < kUp * kUp; ++k) content[k] = load<K>(a.content + to + k * step);
        }
#pragma unroll
        for (int k = 0; k < kUp * kUp; ++k) {
          Vec<T, K> d;
#pragma unroll
          for (int e = 0; e < K; ++e) {
            const int at = e * kUp + k % kUp;
            d.v[e] = rows[k / kUp][at / N].v[at % N];
            if (active)
              d.v[e] = static_cast<T>(leaky(widen(content[k].v[e]), widen(d.v[e]), slope));
          }
          store<K>(a.d_content + to + k * step, d);
        }
      }
    }
  }
}

// x: groups of C channels along a row of content, y: its rows, z: images. N: elements of content in
// one access.
template <typename T, int kUp, int C, int N, Group kGroup>
__global__ void __launch_bounds__(kThreads)
    backward_nhwc_kernel(Problem p, BackwardArgs<T> a, Divider pixel_of, int per_pixel) {
  using A = acc_t<T>;
  constexpr int kParts = kUp * kUp;
  const A slope = static_cast<A>(p.negative_slope);
  const bool active = a.content != nullptr;
  const int width = static_cast<int>(p.width), wide = kUp * width;
  const int channels = static_cast<int>(p.channels);
  const unsigned groups = static_cast<unsigned>(width) * static_cast<unsigned>(per_pixel);
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    for (int64_t y = blockIdx.y; y < p.height; y += gridDim.y) {
      const int64_t row = n * p.height + y;
      for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < groups;
           v += gridDim.x * blockDim.x) {
        const int x = pixel_of(static_cast<int>(v));
        const int c = (static_cast<int>(v) - x * per_pixel) * C;
        const int64_t first = row * kUp * wide + kUp * x;
        const int64_t line = (row * width + x) * channels * kParts;
        Pixel<T, C, kParts, N, kGroup> pixel;  // content, then its gradient
        if (active) pixel.load_from(p, a.content + line, c);
#pragma unroll
        for (int k = 0; k < kParts; ++k) {
          const int64_t at = (first + k / kUp * wide + k % kUp) * p.outer_channels + c;
          const auto grad = load<C>(a.grad + at);
#pragma unroll
          for (int e = 0; e < C; ++e) {
            T& d = pixel.at(k, e);
            d = active ? static_cast<T>(leaky(widen(d), widen(grad.v[e]), slope)) : grad.v[e];
          }
        }
        pixel.store_to(p, a.d_content + line, c);
      }
    }
  }
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

template <typename T, int kUp, int K, int N>
cudaError_t launch_nchw(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const int64_t per_row = p.width / K, runs = p.height * per_row;
  return launch(backward_nchw_kernel<T, kUp, K, N>,
                grid_of(ceil_div(runs, kThreads), p.channels, p.images), dim3(kThreads), stream, p,
                a, Divider(per_row), static_cast<int>(runs));
}

template <typename T, int kUp, int C, int N, Group kGroup>
cudaError_t launch_nhwc(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const int64_t per_pixel = p.channels / C;
  return launch(backward_nhwc_kernel<T, kUp, C, N, kGroup>,
                grid_of(ceil_div(p.width * per_pixel, kThreads), p.height, p.images),
                dim3(kThreads), stream, p, a, Divider(per_pixel), static_cast<int>(per_pixel));
}

}  // namespace

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const bool aligned = all_aligned(a.grad, a.content, a.d_content);
  return for_upscale(p.upscale, [&](auto up) {
    constexpr int kUp = decltype(up)::value, K = kRun<T, kUp>, N = kWidth<T, kUp, false>;
    if (!p.channels_last)
      return aligned && p.width % K == 0 ? launch_nchw<T, kUp, K, N>(p, a, stream)
                                         : launch_nchw<T, kUp, 1, 1>(p, a, stream);
    constexpr int C = kGroupSize<T, kUp>, W = kWidth<T, kUp, true>;
    const auto fits = [&](int c) {
      return aligned && p.channels % c == 0 && p.outer_channels % c == 0;
    };
    if (p.order == Order::kCrd && fits(C))
      return launch_nhwc<T, kUp, C, kUp == 3 ? W : kVec16<T>, Group::kCrd>(p, a, stream);
    if (p.order == Order::kDcr && fits(W))
      return launch_nhwc<T, kUp, W, W, Group::kDcr>(p, a, stream);
    return launch_nhwc<T, kUp, 1, 1, Group::kElement>(p, a, stream);
  });
}

#define TINYOPS_INSTANTIATE(T) \
  template cudaError_t backward_cuda<T>(const Problem&, const BackwardArgs<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::pixel_shuffle
