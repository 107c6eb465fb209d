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

// Every third of the 3n elements of a, b and c, from element kFirst on.
template <int kFirst, typename A>
Vector<A> every_third(Vector<A> a, Vector<A> b, Vector<A> c) {
  constexpr int L = kLanes<A>;
  Index<A> of_two, of_all;  // elements of a and b; then those, or elements of c
  for (int k = 0; k < L; ++k) {
    const int at = 3 * k + kFirst;
    of_two[k] = at < 2 * L ? at : 0;
    of_all[k] = at < 2 * L ? k : at - L;
  }
  return __builtin_shuffle(__builtin_shuffle(a, b, of_two), c, of_all);
}
// Part kPart of three of v with every element three times.
template <int kPart, typename A>
Vector<A> repeat_third(Vector<A> v) {
  Index<A> from;
  for (int k = 0; k < kLanes<A>; ++k) from[k] = (kPart * kLanes<A> + k) / 3;
  return __builtin_shuffle(v, from);
}

// Three channels: the values of as many pixels as a vector holds are three vectors.
template <typename T>
void forward_row_of_threes(const T* left, const T* right, int64_t columns, T* out) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  using W = Wide<A>;
  int64_t x = 0;
  for (; x + L <= columns; x += L, left += 3 * L, right += 3 * L) {
    const auto a = magnitude(W::load(left) - W::load(right));
    const auto b = magnitude(W::load(left + L) - W::load(right + L));
    const auto c = magnitude(W::load(left + 2 * L) - W::load(right + 2 * L));
    const auto sum =
        every_third<0, A>(a, b, c) + every_third<1, A>(a, b, c) + every_third<2, A>(a, b, c);
    W::store(out + x, sum / A(3));
  }
  for (; x < columns; ++x, left += 3, right += 3) {
    A sum = 0;
    for (int k = 0; k < 3; ++k) sum += magnitude(widen(left[k]) - widen(right[k]));
    out[x] = narrow<T>(sum / A(3));
  }
}

template <typename T>
void forward_row_nhwc(const Problem& p, const ForwardArgs<T>& a, int64_t row, int64_t columns,
                      T* out) {
  using A = acc_t<T>;
  const int64_t start = row * p.width * p.channels;
  const T *left = a.reconstruction + start, *right = a.image + start;
  if (p.channels == 3) return forward_row_of_threes(left, right, columns, out);
  for (int64_t x = 0; x < columns; ++x, left += p.channels, right += p.channels) {
    Sum<A> sum;
    for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
      sum.add(magnitude(lanes.load(left + c) - lanes.load(right + c)));
    });
    out[x] = narrow<T>(sum.total() / static_cast<A>(p.channels));
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
void backward_row_nhwc(const Problem& p, const BackwardArgs<T>& a, int64_t row, int64_t columns) {
  using A = acc_t<T>;
  const A count = static_cast<A>(p.channels);
  const T* grad = a.grad + row * p.width;
  const int64_t start = row * p.width * p.channels, values = columns * p.channels;
  const T *left = a.reconstruction + start, *right = a.image + start;
  T* out = a.d_reconstruction + start;
  const auto write = [&](auto lanes, auto stream, int64_t k, auto share) {
    const auto s = sign_of(lanes.load(left + k) - lanes.load(right + k));
    lanes.template store<stream.value>(out + k, s * share);
  };
  constexpr int L = kLanes<A>;
  int64_t x = 0;
  for (; p.channels == 3 && x + L <= columns; x += L) {
    const auto share = Wide<A>::load(grad + x) / count;
    write(Wide<A>{}, std::bool_constant<kStream>{}, 3 * x, repeat_third<0, A>(share));
    write(Wide<A>{}, std::bool_constant<kStream>{}, 3 * x + L, repeat_third<1, A>(share));
    write(Wide<A>{}, std::bool_constant<kStream>{}, 3 * x + 2 * L, repeat_third<2, A>(share));
  }
  for (; x < columns; ++x) {
    const A share = widen(grad[x]) / count;
    for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
      // Pixels of any number of channels are not aligned.
      write(lanes, std::false_type{}, x * p.channels + c,
            typename decltype(lanes)::Value{} + share);
    });
  }
  for (int64_t k = values; k < p.width * p.channels; ++k) out[k] = narrow<T>(A(0));
}

template <bool kStream, typename T>
void backward_rows(const Problem& p, const BackwardArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Extent valid = extent_of(a.valid, row / p.height, p.height, p.width);
    const int64_t columns = row % p.height < valid.rows ? valid.columns : 0;
    p.channels_last ? backward_row_nhwc<kStream>(p, a, row, columns)
                    : backward_row_nchw<kStream>(p, a, row, columns);
  }
}

}  // namespace

template <Isa isa, typename T>
void forward(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.height, y = row % p.height;
    const Extent valid = extent_of(a.valid, image, p.height, p.width);
    const int64_t columns = y < valid.rows ? valid.columns : 0;
    T* out = a.out + row * p.width;
    p.channels_last ? forward_row_nhwc(p, a, row, columns, out)
                    : forward_row_nchw(p, a, image, y, columns, out);
    for (int64_t x = columns; x < p.width; ++x) out[x] = narrow<T>(acc_t<T>(0));
  }
}

template <Isa isa, typename T>
void backward(const Problem& p, const BackwardArgs<T>& a, bool stream, int64_t begin, int64_t end) {
  const int64_t row = (p.channels_last ? p.channels : 1) * p.width * int64_t{sizeof(T)};
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  if (stream && row % kBytes == 0 &&
      reinterpret_cast<uintptr_t>(a.d_reconstruction) % kBytes == 0) {
    backward_rows<true>(p, a, begin, end);
    stream_fence();
  } else {
    backward_rows<false>(p, a, begin, end);
  }
}

#define TINYOPS_INSTANTIATE(T)                                                             \
  template void forward<kIsa, T>(const Problem&, const ForwardArgs<T>&, int64_t, int64_t); \
  template void backward<kIsa, T>(const Problem&, const BackwardArgs<T>&, bool, int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::difference_map
