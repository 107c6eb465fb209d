// difference_map on the CPU. Memory-bound: every input is read once, every result written once.
#include "difference_map.h"
#include "simd.h"

namespace tinyops::difference_map {
namespace {

// Signs of vectors and of single elements alike; that of 0 and of NaN is 0.
template <typename V>
V magnitude(V x) {
  return x < V{} ? -x : x;
}
template <typename V>
V sign_of(V x) {
  const V one = V{} + 1, none = V{};
  return x > none ? one : (x < none ? -one : none);
}

// `sum` of the channels of row `y`, from column 0 to `columns`, of NCHW.
template <typename T>
void forward_row_nchw(const Problem& p, const ForwardArgs<T>& a, int64_t image, int64_t y,
                      int64_t columns, T* out) {
  using A = acc_t<T>;
  const int64_t plane = p.plane(), start = image * p.channels * plane + y * p.width;
  const T *left = a.reconstruction + start, *right = a.image + start;
  const A count = static_cast<A>(p.channels);
  if (p.channels == 3) {  // pictures: every load has an address that is known beforehand
    for_lanes<A>(columns, [&](auto lanes, int64_t x) {
      const auto sum =
          magnitude(lanes.load(left + x) - lanes.load(right + x)) +
          magnitude(lanes.load(left + plane + x) - lanes.load(right + plane + x)) +
          magnitude(lanes.load(left + 2 * plane + x) - lanes.load(right + 2 * plane + x));
      lanes.store(out + x, sum / count);
    });
    return;
  }
  for_lanes<A>(columns, [&](auto lanes, int64_t x) {
    typename decltype(lanes)::Value sum = {};
    for (int64_t c = 0; c < p.channels; ++c)
      sum = sum + magnitude(lanes.load(left + c * plane + x) - lanes.load(right + c * plane + x));
    lanes.store(out + x, sum / count);
  });
}

template <typename T>
void forward_row_nhwc(const Problem& p, const ForwardArgs<T>& a, int64_t row, int64_t columns,
                      T* out, acc_t<T>* line) {
  using A = acc_t<T>;
  const int64_t start = row * p.width * p.channels;
  for_lanes<A>(columns * p.channels, [&](auto lanes, int64_t k) {
    lanes.store(line + k, magnitude(lanes.load(a.reconstruction + start + k) -
                                    lanes.load(a.image + start + k)));
  });
  const A count = static_cast<A>(p.channels);
  if (p.channels == 3) {
    for (int64_t x = 0; x < columns; ++x)
      out[x] = narrow<T>((line[3 * x] + line[3 * x + 1] + line[3 * x + 2]) / count);
    return;
  }
  for (int64_t x = 0; x < columns; ++x) {
    A sum = 0;
    for (int64_t c = 0; c < p.channels; ++c) sum += line[x * p.channels + c];
    out[x] = narrow<T>(sum / count);
  }
}

template <bool kStream, typename T>
void backward_row_nchw(const Problem& p, const BackwardArgs<T>& a, int64_t row, int64_t columns) {
  using A = acc_t<T>;
  const int64_t image = row / p.height, y = row % p.height;
  const A count = static_cast<A>(p.channels);
  const T* grad = a.grad + row * p.width;
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t start = (image * p.channels + c) * p.plane() + y * p.width;
    const T *left = a.reconstruction + start, *right = a.image + start;
    T* out = a.d_reconstruction + start;
    for_lanes<A>(columns, [&](auto lanes, int64_t x) {
      const auto s = sign_of(lanes.load(left + x) - lanes.load(right + x));
      lanes.template store<kStream>(out + x, s * (lanes.load(grad + x) / count));
    });
    for (int64_t x = columns; x < p.width; ++x) out[x] = narrow<T>(A(0));
  }
}

template <bool kStream, typename T>
void backward_row_nhwc(const Problem& p, const BackwardArgs<T>& a, int64_t row, int64_t columns,
                       acc_t<T>* line) {
  using A = acc_t<T>;
  const A count = static_cast<A>(p.channels);
  const T* grad = a.grad + row * p.width;
  for (int64_t x = 0; x < columns; ++x) {
    const A share = widen(grad[x]) / count;
    for (int64_t c = 0; c < p.channels; ++c) line[x * p.channels + c] = share;
  }
  for (int64_t k = columns * p.channels; k < p.width * p.channels; ++k) line[k] = 0;
  const int64_t start = row * p.width * p.channels;
  T* out = a.d_reconstruction + start;
  for_lanes<A>(columns * p.channels, [&](auto lanes, int64_t k) {
    const auto s =
        sign_of(lanes.load(a.reconstruction + start + k) - lanes.load(a.image + start + k));
    lanes.template store<kStream>(out + k, s * lanes.load(line + k));
  });
  for (int64_t k = columns * p.channels; k < p.width * p.channels; ++k) out[k] = narrow<T>(A(0));
}

template <bool kStream, typename T>
void backward_rows(const Problem& p, const BackwardArgs<T>& a, int64_t begin, int64_t end,
                   acc_t<T>* line) {
  for (int64_t row = begin; row < end; ++row) {
    const Extent valid = extent_of(a.valid, row / p.height, p.height, p.width);
    const int64_t columns = row % p.height < valid.rows ? valid.columns : 0;
    p.channels_last ? backward_row_nhwc<kStream>(p, a, row, columns, line)
                    : backward_row_nchw<kStream>(p, a, row, columns);
  }
}

}  // namespace

template <Isa isa, typename T>
void forward(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end,
             acc_t<T>* line) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.height, y = row % p.height;
    const Extent valid = extent_of(a.valid, image, p.height, p.width);
    const int64_t columns = y < valid.rows ? valid.columns : 0;
    T* out = a.out + row * p.width;
    p.channels_last ? forward_row_nhwc(p, a, row, columns, out, line)
                    : forward_row_nchw(p, a, image, y, columns, out);
    for (int64_t x = columns; x < p.width; ++x) out[x] = narrow<T>(acc_t<T>(0));
  }
}

template <Isa isa, typename T>
void backward(const Problem& p, const BackwardArgs<T>& a, bool stream, int64_t begin, int64_t end,
              acc_t<T>* line) {
  const int64_t row = (p.channels_last ? p.channels : 1) * p.width * int64_t{sizeof(T)};
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  if (stream && row % kBytes == 0 &&
      reinterpret_cast<uintptr_t>(a.d_reconstruction) % kBytes == 0) {
    backward_rows<true>(p, a, begin, end, line);
    stream_fence();
  } else {
    backward_rows<false>(p, a, begin, end, line);
  }
}

#define TINYOPS_INSTANTIATE(T)                                                                    \
  template void forward<kIsa, T>(const Problem&, const ForwardArgs<T>&, int64_t, int64_t,         \
                                 acc_t<T>*);                                                      \
  template void backward<kIsa, T>(const Problem&, const BackwardArgs<T>&, bool, int64_t, int64_t, \
                                  acc_t<T>*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::difference_map
