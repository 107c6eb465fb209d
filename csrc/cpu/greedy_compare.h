// The comparison of a box with a bucket of kept ones. Part of greedy_kernels.cpp, which is compiled
// once per instruction set: everything has internal linkage.
#pragma once
#include <cstring>

#include "greedy_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinyops::greedy {
namespace {

// Eight lanes, whatever the machine has; GCC splits what is wider than that.
template <typename T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kBucketBoxes * sizeof(T))));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;
template <typename T>
using Mask = decltype(Lanes<T>{} < Lanes<T>{});

TINYOPS_HD bool any(Mask<float> m) {
#if defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) != 0;
#else
  int64_t v[4];
  memcpy(v, &m, sizeof(m));
  return (v[0] | v[1] | v[2] | v[3]) != 0;
#endif
}
TINYOPS_HD bool any(Mask<double> m) {
  int64_t v[8];
  memcpy(v, &m, sizeof(m));
  return (v[0] | v[1] | v[2] | v[3] | v[4] | v[5] | v[6] | v[7]) != 0;
}

TINYOPS_HD Lanes<float> lanes_min(Lanes<float> a, Lanes<float> b) {
#if defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
TINYOPS_HD Lanes<float> lanes_max(Lanes<float> a, Lanes<float> b) {
#if defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
TINYOPS_HD Lanes<double> lanes_min(Lanes<double> a, Lanes<double> b) {
  return a < b ? a : b;
}
TINYOPS_HD Lanes<double> lanes_max(Lanes<double> a, Lanes<double> b) {
  return a > b ? a : b;
}

template <typename T>
TINYOPS_HD Lanes<T> load(const T* p) {
  return *reinterpret_cast<const Lanes<T>*>(p);
}

template <typename T>
TINYOPS_HD T centre(T low, T high) {
  return low * T(0.5) + high * T(0.5);
}

// The box that is being decided.
template <typename T>
struct Candidate {
  Box<T> box;
  T width, height;
  int32_t tile;
  bool truncated;

  // Overlaps nothing: it is kept, and makes nothing go.
  TINYOPS_HD bool empty() const {
    return !(width > T(0) && height > T(0) && width * height > T(0));
  }
  TINYOPS_HD T x() const { return centre(box.x1, box.x2); }
  TINYOPS_HD T y() const { return centre(box.y1, box.y2); }
  TINYOPS_HD T x_slack() const { return slack_of(box.x1, box.x2); }
  TINYOPS_HD T y_slack() const { return slack_of(box.y1, box.y2); }
  TINYOPS_HD T x_extent() const { return extent_of(width, x_slack()); }
  TINYOPS_HD T y_extent() const { return extent_of(height, y_slack()); }
};

// Exact, and without a division unless a box is about to go: what is clearly below the threshold is
// sorted out by a product, whose rounding the factor allows for.
template <typename T>
constexpr T kBelow = T(1) - T(16) * (sizeof(T) == 8 ? T(0x1p-52) : T(0x1p-23));

template <Rule rule, bool legacy, typename T>
TINYOPS_HD bool suppresses(const Run<T>& run, uint32_t bucket, const Candidate<T>& c) {
  const Bucket<T>& b = run.buckets[bucket];
  const Lanes<T> x1 = load(b.x1), y1 = load(b.y1), x2 = load(b.x2), y2 = load(b.y2), zero = {};
  const Lanes<T> cx1 = zero + c.box.x1, cy1 = zero + c.box.y1, cx2 = zero + c.box.x2,
                 cy2 = zero + c.box.y2;
  Lanes<T> width = lanes_min(x2, cx2) - lanes_max(x1, cx1);
  Lanes<T> height = lanes_min(y2, cy2) - lanes_max(y1, cy1);
  Lanes<T> own_width = x2 - x1, own_height = y2 - y1;
  if constexpr (legacy) {
    width += T(1);
    height += T(1);
    own_width += T(1);
    own_height += T(1);
  }
  const Lanes<T> inter = lanes_max(width, zero) * lanes_max(height, zero);
  const Lanes<T> area = own_width * own_height;
  Mask<T> maybe = inter > zero;
  if constexpr (rule == Rule::kStitch) {
    const auto tiles = *reinterpret_cast<const Lanes<int32_t>*>(run.bucket_tiles[bucket].tile);
    const Lanes<int32_t> differ = tiles != c.tile;
    if constexpr (sizeof(T) == 4)
      maybe &= differ;
    else
      maybe &= __builtin_convertvector(differ, Mask<T>);
  }
  if constexpr (rule == Rule::kIos) {
    const Lanes<T> least = lanes_min(area, zero + c.width * c.height);
    maybe &= inter >= least * (run.threshold * kBelow<T>);
    if (!any(maybe)) return false;
    return any(maybe & (inter / least > run.threshold));
  } else {
    const Lanes<T> both = (area + c.width * c.height) - inter;
    const Mask<T> close = inter >= both * (run.threshold * kBelow<T>);
    if (rule == Rule::kStitch && c.truncated) {
      const Lanes<T> least = lanes_min(area, zero + c.width * c.height);
      const Mask<T> inside = inter >= least * (run.ios_threshold * kBelow<T>);
      if (!any(maybe & (close | inside))) return false;
      return any(maybe & ((inter / both > run.threshold) | (inter / least > run.ios_threshold)));
    }
    maybe &= close;
    if (!any(maybe)) return false;
    return any(maybe & (inter / both > run.threshold));
  }
}

}  // namespace
}  // namespace tinyops::greedy
