// difference_map on a GPU. A thread owns V pixels of a row, 16 bytes, and walks their channels:
// forward 2C + 1 elements move per pixel, backward 3C + 1. Padding is not read.
#include "difference_map.h"
#include "launch.h"

namespace tinyops::difference_map {
namespace {

using namespace cuda;

// The place of V pixels in the images: vector k of them is at `start + k * step`, with kPixel the
// values of one pixel that follow each other. In NCHW a vector is one channel of the V pixels. In
// NHWC with three channels, the 3V values of V pixels are three vectors; otherwise V is 1.
template <int V, bool kNhwc>
struct Place {
  int64_t start, step;
  __device__ Place(const Problem& p, int64_t n, int pixel)
      : start((kNhwc ? (n * p.plane() + pixel) : n * p.plane()) * p.channels + (kNhwc ? 0 : pixel)),
        step(kNhwc ? V : p.plane()) {}
  // Which of the V pixels element e of vector k belongs to.
  static __device__ int pixel_of(int k, int e) {
    return kNhwc ? (V == 1 ? 0 : (k * V + e) / 3) : e;
  }
};

// kChannels: 3, or 0 for any number.
template <typename T, int V, int kChannels, bool kNhwc>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Problem p, ForwardArgs<T> a, Divider row_of, int vectors) {
  using A = acc_t<T>;
  const int64_t channels = kChannels == 0 ? p.channels : kChannels;
  const A count = static_cast<A>(channels);
  const int per_row = p.width / V;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent valid = extent_of(a.valid, n, p.height, p.width);
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(vectors);
         v += gridDim.x * blockDim.x) {
      const int y = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - y * per_row) * V;
      const int pixel = y * p.width + x;
      A sum[V] = {};
      if (y < valid.rows && x < valid.columns) {
        const Place<V, kNhwc> place(p, n, pixel);
        const auto add = [&](int64_t k, const Vec<T, V>& left, const Vec<T, V>& right) {
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const A d = widen(left.v[e]) - widen(right.v[e]);
            sum[place.pixel_of(static_cast<int>(k), e)] += d < A(0) ? -d : d;
          }
        };
        if constexpr (kChannels > 0) {
          Vec<T, V> left[kChannels], right[kChannels];
#pragma unroll
          for (int k = 0; k < kChannels; ++k) {
            left[k] = load<V>(a.reconstruction + place.start + k * place.step);
            right[k] = load<V>(a.image + place.start + k * place.step);
          }
#pragma unroll
          for (int k = 0; k < kChannels; ++k) add(k, left[k], right[k]);
        } else {
#pragma unroll 4
          for (int64_t k = 0; k < channels; ++k)
            add(k, load<V>(a.reconstruction + place.start + k * place.step),
                load<V>(a.image + place.start + k * place.step));
        }
      }
      Vec<T, V> out;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const bool inside = y < valid.rows && x + e < valid.columns;
        out.v[e] = static_cast<T>(inside ? sum[e] / count : A(0));
      }
      store<V>(a.out + n * p.plane() + pixel, out);
    }
  }
}

template <typename T, int V, int kChannels, bool kNhwc>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Problem p, BackwardArgs<T> a, Divider row_of, int vectors) {
  using A = acc_t<T>;
  const int64_t channels = kChannels == 0 ? p.channels : kChannels;
  const A count = static_cast<A>(channels);
  const int per_row = p.width / V;
  for (int64_t n = blockIdx.z; n < p.images; n += gridDim.z) {
    const Extent valid = extent_of(a.valid, n, p.height, p.width);
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < static_cast<unsigned>(vectors);
         v += gridDim.x * blockDim.x) {
      const int y = row_of(static_cast<int>(v)), x = (static_cast<int>(v) - y * per_row) * V;
      const int pixel = y * p.width + x;
      const bool some = y < valid.rows && x < valid.columns;
      const Place<V, kNhwc> place(p, n, pixel);
      A share[V] = {};
      if (some) {
        const auto grad = load<V>(a.grad + n * p.plane() + pixel);
#pragma unroll
        for (int e = 0; e < V; ++e) share[e] = widen(grad.v[e]) / count;
      }
      const auto write = [&](int64_t k, const Vec<T, V>& left, const Vec<T, V>& right) {
        Vec<T, V> d;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A l = widen(left.v[e]), r = widen(right.v[e]);
          const A sign = static_cast<A>((l > r) - (l < r));
          const int own = place.pixel_of(static_cast<int>(k), e);
          d.v[e] = static_cast<T>(some && x + own < valid.columns ? sign * share[own] : A(0));
        }
        store<V>(a.d_reconstruction + place.start + k * place.step, d);
      };
      if constexpr (kChannels > 0) {
        Vec<T, V> left[kChannels] = {}, right[kChannels] = {};
#pragma unroll
        for (int k = 0; k < kChannels; ++k) {
          if (!some) break;
          left[k] = load<V>(a.reconstruction + place.start + k * place.step);
          right[k] = load<V>(a.image + place.start + k * place.step);
        }
#pragma unroll
        for (int k = 0; k < kChannels; ++k) write(k, left[k], right[k]);
      } else {
        for (int64_t k = 0; k < channels; ++k) {
          Vec<T, V> left = {}, right = {};
          if (some) {
            left = load<V>(a.reconstruction + place.start + k * place.step);
            right = load<V>(a.image + place.start + k * place.step);
          }
          write(k, left, right);
        }
      }
    }
  }
}

// ---- launchers: which path the shapes and addresses allow ---------------------------------------

// Calls f(V, channels, nhwc) with compile-time constants.
template <typename T, typename F>
cudaError_t for_path(const Problem& p, bool aligned, const F& f) {
  constexpr int V = kVec16<T>;
  using std::integral_constant;
  const auto path = [&](auto v, auto channels) {
    return p.channels_last ? f(v, channels, std::true_type{}) : f(v, channels, std::false_type{});
  };
  const bool wide = aligned && p.width % V == 0;
  if (p.channels == 3)
    return wide ? path(integral_constant<int, V>{}, integral_constant<int, 3>{})
                : path(integral_constant<int, 1>{}, integral_constant<int, 3>{});
  return wide && !p.channels_last
             ? f(integral_constant<int, V>{}, integral_constant<int, 0>{}, std::false_type{})
             : path(integral_constant<int, 1>{}, integral_constant<int, 0>{});
}

}  // namespace

template <typename T>
cudaError_t forward_cuda(const Problem& p, const ForwardArgs<T>& a, cudaStream_t stream) {
  return for_path<T>(p, all_aligned(a.reconstruction, a.image, a.out), [&](auto v, auto c, auto l) {
    constexpr int V = decltype(v)::value;
    const int64_t vectors = p.plane() / V;
    return launch(forward_kernel<T, V, decltype(c)::value, decltype(l)::value>,
                  grid_of(ceil_div(vectors, kThreads), 1, p.images), dim3(kThreads), stream, p, a,
                  Divider(p.width / V), static_cast<int>(vectors));
  });
}

template <typename T>
cudaError_t backward_cuda(const Problem& p, const BackwardArgs<T>& a, cudaStream_t stream) {
  const bool aligned = all_aligned(a.grad, a.reconstruction, a.image, a.d_reconstruction);
  return for_path<T>(p, aligned, [&](auto v, auto c, auto l) {
    constexpr int V = decltype(v)::value;
    const int64_t vectors = p.plane() / V;
    return launch(backward_kernel<T, V, decltype(c)::value, decltype(l)::value>,
                  grid_of(ceil_div(vectors, kThreads), 1, p.images), dim3(kThreads), stream, p, a,
                  Divider(p.width / V), static_cast<int>(vectors));
  });
}

#define TINYOPS_INSTANTIATE(T)                                                               \
  template cudaError_t forward_cuda<T>(const Problem&, const ForwardArgs<T>&, cudaStream_t); \
  template cudaError_t backward_cuda<T>(const Problem&, const BackwardArgs<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(__half)
TINYOPS_INSTANTIATE(__nv_bfloat16)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::difference_map
