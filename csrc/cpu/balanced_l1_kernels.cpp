// balanced_l1 on the CPU, forward and backward. Memory-bound: prediction and target move once, and
// in the backward the gradients. The mask of a plane stays in the cache while channels pass by.
#include "balanced_l1.h"
#include "simd.h"

namespace tinyops::balanced_l1 {
namespace {

float absolute(float v) {
  return __builtin_fabsf(v);
}
double absolute(double v) {
  return __builtin_fabs(v);
}
Vector<float> absolute(Vector<float> v) {
  return bits<Vector<float>>(bits<Index<float>>(v) & 0x7fffffff);
}
Vector<double> absolute(Vector<double> v) {
  return bits<Vector<double>>(bits<Index<double>>(v) & 0x7fffffffffffffff);
}

// As many bytes of the mask as a vector has lanes. GCC 12 makes several shuffles of the conversion.
template <typename A>
Index<A> mask_of(Wide<A>, const uint8_t* p) {
  constexpr int L = kLanes<A>;
#if TINYOPS_ISA == 2
  if constexpr (L == 16)
    return bits<Index<A>>(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  else
    return bits<Index<A>>(
        _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif TINYOPS_ISA == 1
  if constexpr (L == 8)
    return bits<Index<A>>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  else
    return bits<Index<A>>(_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(read<int32_t>(p))));
#else
  typedef uint8_t Few __attribute__((vector_size(L)));
  Few few;  // not read<Few>: a template argument loses the attribute
  std::memcpy(&few, p, sizeof(few));
  return __builtin_convertvector(few, Index<A>);
#endif
}
template <typename A>
int mask_of(Single<A>, const uint8_t* p) {
  return *p;
}

template <typename T, typename Lanes>
auto difference(Lanes lanes, const T* prediction, const T* target) {
  return absolute(lanes.load(prediction) - lanes.load(target));
}

constexpr int64_t kChunk = 2048;  // elements whose sums are kept in vectors of the narrow type

int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// ---- sums ---------------------------------------------------------------------------------------

template <typename T>
Sum2 sums_of_plane(const T* prediction, const T* target, const uint8_t* mask, int64_t n) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  Sum2 result{0, 0};
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = least(n, start + kChunk);
    Sum<A> total, positive, more, more_positive;
    const auto add = [&](auto lanes, int64_t i, Sum<A>& all, Sum<A>& some) {
      auto d = difference(lanes, prediction + i, target + i);
      const auto m = mask_of(lanes, mask + i);
      const decltype(d) zero{};
      all.add(m > 0 ? d : zero);
      some.add(m > 1 ? d : zero);
    };
    int64_t i = start;
    for (; i + 2 * L <= end; i += 2 * L) {
      add(Wide<A>{}, i, total, positive);
      add(Wide<A>{}, i + L, more, more_positive);
    }
    for (; i + L <= end; i += L) add(Wide<A>{}, i, total, positive);
    for (; i < end; ++i) add(Single<A>{}, i, total, positive);
    result.total += static_cast<double>(total.total() + more.total());
    result.positive += static_cast<double>(positive.total() + more_positive.total());
  }
  return result;
}

// The sum over the channels of one cell stays in lanes.
template <typename T>
Sum2 sums_of_pixels(const T* prediction, const T* target, const uint8_t* mask, int64_t n,
                    int64_t channels) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  const int64_t per_chunk = kChunk / channels > 1 ? kChunk / channels : 1;
  Sum2 result{0, 0};
  for (int64_t start = 0; start < n; start += per_chunk) {
    const int64_t end = least(n, start + per_chunk);
    Sum<A> total, positive;
    for (int64_t cell = start; cell < end; ++cell) {
      const uint8_t m = mask[cell];
      if (m == kOutside) continue;
      const T *a = prediction + cell * channels, *b = target + cell * channels;
      Vector<A> s0{}, s1{}, s2{}, s3{};
      A single = 0;
      int64_t c = 0;
      const Wide<A> wide{};
      for (; c + 4 * L <= channels; c += 4 * L) {
        s0 += difference(wide, a + c, b + c);
        s1 += difference(wide, a + c + L, b + c + L);
        s2 += difference(wide, a + c + 2 * L, b + c + 2 * L);
        s3 += difference(wide, a + c + 3 * L, b + c + 3 * L);
      }
      for (; c + L <= channels; c += L) s0 += difference(wide, a + c, b + c);
      for (; c < channels; ++c) single += difference(Single<A>{}, a + c, b + c);
      const Vector<A> s = (s0 + s1) + (s2 + s3);
      total.add(s);
      total.add(single);
      if (m == kPositive) {
        positive.add(s);
        positive.add(single);
      }
    }
    result.total += static_cast<double>(total.total());
    result.positive += static_cast<double>(positive.total());
  }
  return result;
}

// ---- backward -----------------------------------------------------------------------------------

// sign(prediction - target) * weight, and 0 where the difference is 0 or NaN, as in torch.
template <typename D, typename W>
W slope(D d, W weight) {
  const W zero{};
  return d > 0 ? weight : d < 0 ? -weight : zero;
}

template <bool kStream, typename T, typename A, typename Lanes, typename W>
void backward_point(Lanes lanes, const BackwardArgs<T>& a, int64_t i, W weight) {
  const auto d = slope(lanes.load(a.prediction + i) - lanes.load(a.target + i), weight);
  if (a.d_prediction) lanes.template store<kStream>(a.d_prediction + i, d);
  if (a.d_target) lanes.template store<kStream>(a.d_target + i, -d);
}

template <typename A>
struct Weights {
  A inside, positive;
};

template <bool kStream, typename T, typename A>
void backward_plane(const BackwardArgs<T>& a, const uint8_t* mask, int64_t at, int64_t n,
                    Weights<A> w) {
  for_lanes<A>(n, [&](auto lanes, int64_t i) {
    const auto m = mask_of(lanes, mask + i);
    using W = decltype(lanes.load(a.prediction));
    const W zero{}, inside = zero + w.inside, positive = zero + w.positive;
    const W weight = m > 1 ? positive : m > 0 ? inside : zero;
    backward_point<kStream, T, A>(lanes, a, at + i, weight);
  });
}

template <bool kStream, typename T, typename A>
void backward_pixels(const BackwardArgs<T>& a, const uint8_t* mask, int64_t at, int64_t n,
                     int64_t channels, Weights<A> w) {
  for (int64_t cell = 0; cell < n; ++cell, at += channels) {
    const A weight = mask[cell] == kPositive ? w.positive : mask[cell] == kInside ? w.inside : A(0);
    for_lanes<A>(channels, [&](auto lanes, int64_t c) {
      using W = decltype(lanes.load(a.prediction));
      backward_point<kStream, T, A>(lanes, a, at + c, W{} + weight);
    });
  }
}

struct Unit {
  int64_t at, cells;  // first element, and cells
  const uint8_t* mask;
};

Unit unit_of(const Problem& p, const Parts& parts, const uint8_t* mask, int64_t unit) {
  const int64_t plane = unit / parts.per_plane, start = unit % parts.per_plane * parts.cells;
  const int64_t image = p.channels_last ? plane : plane / p.channels;
  const int64_t at = plane * p.plane() + start;
  return {p.channels_last ? at * p.channels : at, least(parts.cells, p.plane() - start),
          mask + image * p.plane() + start};
}

// Streaming stores need every vector aligned: runs of whole vectors from an aligned start.
template <typename T>
bool can_stream(const Problem& p, const BackwardArgs<T>& a) {
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  const int64_t run = (p.channels_last ? p.channels : p.plane()) * int64_t{sizeof(T)};
  return run % kBytes == 0 && reinterpret_cast<uintptr_t>(a.d_prediction) % kBytes == 0 &&
         reinterpret_cast<uintptr_t>(a.d_target) % kBytes == 0;
}

template <bool kStream, typename T>
void backward_units(const Problem& p, const Parts& parts, const BackwardArgs<T>& a, int64_t begin,
                    int64_t end) {
  using A = acc_t<T>;
  const Weights<A> w{*a.d_total, *a.d_total + *a.d_positive};
  for (int64_t k = begin; k < end; ++k) {
    const Unit u = unit_of(p, parts, a.mask, k);
    if (p.channels_last)
      backward_pixels<kStream, T, A>(a, u.mask, u.at, u.cells, p.channels, w);
    else
      backward_plane<kStream, T, A>(a, u.mask, u.at, u.cells, w);
  }
  if (kStream) stream_fence();
}

}  // namespace

template <Isa isa, typename T>
void sums(const Problem& p, const Parts& parts, const ForwardArgs<T>& a, Sum2* of_units,
          int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const Unit u = unit_of(p, parts, a.mask, k);
    const T *prediction = a.prediction + u.at, *target = a.target + u.at;
    of_units[k] = p.channels_last ? sums_of_pixels(prediction, target, u.mask, u.cells, p.channels)
                                  : sums_of_plane(prediction, target, u.mask, u.cells);
  }
}

template <Isa isa, typename T>
void backward(const Problem& p, const Parts& parts, const BackwardArgs<T>& a, bool stream,
              int64_t begin, int64_t end) {
  if (stream && can_stream(p, a))
    backward_units<true>(p, parts, a, begin, end);
  else
    backward_units<false>(p, parts, a, begin, end);
}

#define TINYOPS_INSTANTIATE(T)                                                                     \
  template void sums<kIsa, T>(const Problem&, const Parts&, const ForwardArgs<T>&, Sum2*, int64_t, \
                              int64_t);                                                            \
  template void backward<kIsa, T>(const Problem&, const Parts&, const BackwardArgs<T>&, bool,      \
                                  int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::balanced_l1
