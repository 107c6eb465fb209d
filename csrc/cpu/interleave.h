// Several streams of elements made one and back, in registers: a transpose of kWays x lanes. kWays
// is a power of 2, 3 or 9. Included by kernel files only, like simd.h.
#pragma once
#include "simd.h"

namespace tinyops {
namespace {

template <int kWays>
constexpr int kRadix = kWays % 2 == 0 ? 2 : 3;

// From streams v[j] to the one whose element i is element i / kWays of stream i % kWays.
template <int kWays, typename A>
inline void zip(Vector<A>* v) {
  constexpr int L = kLanes<A>, Q = kRadix<kWays>, kRest = kWays / Q;
  if constexpr (kWays == 2) {
    Index<A> from;
    for (int k = 0; k < L; ++k) from[k] = k / 2 + k % 2 * L;
    const Vector<A> a = v[0], b = v[1];
    v[0] = __builtin_shuffle(a, b, from);
    v[1] = __builtin_shuffle(a, b, from + L / 2);
  } else if constexpr (kWays == 3) {
    const Vector<A> a = v[0], b = v[1], c = v[2];
#pragma GCC unroll 3
    for (int m = 0; m < 3; ++m) {
      Index<A> two, three;  // first a and b, then what that gave and c
      for (int k = 0; k < L; ++k) {
        const int i = m * L + k;
        two[k] = i / 3 + (i % 3 == 1 ? L : 0);
        three[k] = i % 3 == 2 ? i / 3 + L : k;
      }
      v[m] = __builtin_shuffle(__builtin_shuffle(a, b, two), c, three);
    }
  } else {
#pragma GCC unroll 3
    for (int j = 0; j < Q; ++j) {
      Vector<A> part[kRest];
#pragma GCC unroll 8
      for (int m = 0; m < kRest; ++m) part[m] = v[m * Q + j];
      zip<kRest, A>(part);
#pragma GCC unroll 8
      for (int m = 0; m < kRest; ++m) v[m * Q + j] = part[m];
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRest; ++m) zip<Q, A>(v + m * Q);
  }
}

// The inverse of zip.
template <int kWays, typename A>
inline void unzip(Vector<A>* v) {
  constexpr int L = kLanes<A>, Q = kRadix<kWays>, kRest = kWays / Q;
  if constexpr (kWays == 2) {
    Index<A> even;
    for (int k = 0; k < L; ++k) even[k] = 2 * k;
    const Vector<A> a = v[0], b = v[1];
    v[0] = __builtin_shuffle(a, b, even);
    v[1] = __builtin_shuffle(a, b, even + 1);
  } else if constexpr (kWays == 3) {
    const Vector<A> a = v[0], b = v[1], c = v[2];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      Index<A> two, three;
      for (int k = 0; k < L; ++k) {
        const int i = 3 * k + j;
        two[k] = i < 2 * L ? i : 0;
        three[k] = i < 2 * L ? k : i - L;
      }
      v[j] = __builtin_shuffle(__builtin_shuffle(a, b, two), c, three);
    }
  } else {
#pragma GCC unroll 8
    for (int m = 0; m < kRest; ++m) unzip<Q, A>(v + m * Q);
#pragma GCC unroll 3
    for (int j = 0; j < Q; ++j) {
      Vector<A> part[kRest];
#pragma GCC unroll 8
      for (int m = 0; m < kRest; ++m) part[m] = v[m * Q + j];
      unzip<kRest, A>(part);
#pragma GCC unroll 8
      for (int m = 0; m < kRest; ++m) v[m * Q + j] = part[m];
    }
  }
}

}  // namespace
}  // namespace tinyops
