// Sides of boxes, one box per lane of a vector. For the kernels that are compiled once per
// instruction set.
#pragma once
#include "../ops/max_overlap.h"
#include "simd.h"

namespace tinyops::max_overlap {
namespace {

template <typename T>
inline Vector<T> all_lanes(T x) {
  return x - Vector<T>{};  // not a sum: -0 + 0 is 0
}
template <typename T>
inline Side<Vector<T>> all_lanes(const Side<T>& s) {
  return {all_lanes(s.a), all_lanes(s.b), all_lanes(s.c), all_lanes(s.d), all_lanes(s.e)};
}

// The lanes where x > y, as bits.
inline unsigned above(Vector<float> x, Vector<float> y) {
#if TINYOPS_ISA == 2
  return _mm512_cmp_ps_mask(bits<__m512>(x), bits<__m512>(y), _CMP_GT_OQ);
#elif TINYOPS_ISA == 1
  return static_cast<unsigned>(_mm256_movemask_ps(bits<__m256>(x > y)));
#elif defined(__x86_64__)
  return static_cast<unsigned>(_mm_movemask_ps(bits<__m128>(x > y)));
#else
  unsigned r = 0;
  for (int k = 0; k < kLanes<float>; ++k) r |= unsigned{x[k] > y[k]} << k;
  return r;
#endif
}
inline unsigned above(Vector<double> x, Vector<double> y) {
#if TINYOPS_ISA == 2
  return _mm512_cmp_pd_mask(bits<__m512d>(x), bits<__m512d>(y), _CMP_GT_OQ);
#elif TINYOPS_ISA == 1
  return static_cast<unsigned>(_mm256_movemask_pd(bits<__m256d>(x > y)));
#elif defined(__x86_64__)
  return static_cast<unsigned>(_mm_movemask_pd(bits<__m128d>(x > y)));
#else
  unsigned r = 0;
  for (int k = 0; k < kLanes<double>; ++k) r |= unsigned{x[k] > y[k]} << k;
  return r;
#endif
}

// As many int32 as there are lanes of T.
template <typename T>
struct IntsOf {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct IntsOf<double> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes / 2)));
};
template <typename T>
using Ints = typename IntsOf<T>::type;

// `count` boxes from a position on, at most a vector of them; the other lanes repeat the last one.
template <Mode kMode, typename T>
inline Side<Vector<T>> load_boxes(const Box<T>* boxes, const int32_t* order, int64_t position,
                                  int64_t count) {
  alignas(64) T lanes[5][kLanes<T>];
  for (int k = 0; k < kLanes<T>; ++k) {
    const int64_t p = position + (k < count ? k : count - 1);
    const Side<T> side = side_of<kMode, false>(boxes[order ? order[p] : p]);
    lanes[0][k] = side.a;
    lanes[1][k] = side.b;
    lanes[2][k] = side.c;
    lanes[3][k] = side.d;
    lanes[4][k] = side.e;
  }
  return {read<Vector<T>>(lanes[0]), read<Vector<T>>(lanes[1]), read<Vector<T>>(lanes[2]),
          read<Vector<T>>(lanes[3]), read<Vector<T>>(lanes[4])};
}

}  // namespace
}  // namespace tinyops::max_overlap
