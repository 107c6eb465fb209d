// Vectors of the accumulation type, as wide as the instruction set has them.
//
// A kernel file is compiled once per instruction set with -DTINYOPS_ISA=n. Everything here has
// internal linkage and nothing from std is instantiated: an inline function compiled for AVX-512
// must never be the copy that the linker keeps for a machine without it.
#pragma once
#include <cstdint>
#include <cstring>

#include "../common.h"
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinyops {
namespace {

constexpr Isa kIsa = static_cast<Isa>(TINYOPS_ISA);
constexpr int kVectorBytes = kIsa == Isa::kAvx512 ? 64 : kIsa == Isa::kAvx2 ? 32 : 16;

template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;
template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename A>
struct IndexOf {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct IndexOf<double> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Index = typename IndexOf<A>::type;

typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));
typedef int32_t I32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));

template <typename To, typename From>
inline To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  std::memcpy(&r, &v, sizeof(r));
  return r;
}
template <typename V, typename T>
inline V read(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// ---- one element ------------------------------------------------------------------------------

inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}
inline float widen(bfloat16_t x) {
  return bits<float>(static_cast<uint32_t>(x.bits) << 16);
}
inline float widen(half_t x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Shift exponent and mantissa into place and rescale by 2^112, which also normalises subnormals.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return bits<float>(sign | magnitude | 0x70000000u);  // inf, nan
  return bits<float>(sign | bits<uint32_t>(bits<float>(magnitude) * 0x1p112f));
#endif
}

template <typename T>
inline T narrow(acc_t<T> x) {
  return x;
}
template <>
inline bfloat16_t narrow<bfloat16_t>(float x) {
  const uint32_t u = bits<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((u >> 16) | 0x40u)};  // stays a NaN
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
inline half_t narrow<half_t>(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return {static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to inf
  if (magnitude < 0x38800000u) {  // subnormal: the addition rounds at the right bit
    const float shifted = bits<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
#endif
}

// ---- one vector -------------------------------------------------------------------------------

// 16 to 32 bits and back; the upper halves are zero. GCC 12 makes several shuffles of a conversion
// that the instruction set has in one or two.
inline U32 zero_extend(U16 v) {
#if TINYOPS_ISA == 2
  return bits<U32>(_mm512_cvtepu16_epi32(bits<__m256i>(v)));
#elif TINYOPS_ISA == 1
  return bits<U32>(_mm256_cvtepu16_epi32(bits<__m128i>(v)));
#else
  return __builtin_convertvector(v, U32);
#endif
}
inline U16 low_halves(U32 v) {
#if TINYOPS_ISA == 2
  return bits<U16>(_mm512_cvtepi32_epi16(bits<__m512i>(v)));
#elif TINYOPS_ISA == 1
  // Packs inside each 128-bit half, then brings the two quarters that count together.
  const __m256i x = bits<__m256i>(v);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0x08);
  return bits<U16>(_mm256_castsi256_si128(packed));
#else
  return __builtin_convertvector(v, U16);
#endif
}

inline Vector<float> widen_vector(const float* p) {
  return read<Vector<float>>(p);
}
inline Vector<double> widen_vector(const double* p) {
  return read<Vector<double>>(p);
}
inline Vector<float> widen_vector(const bfloat16_t* p) {
  return bits<Vector<float>>(zero_extend(read<U16>(p)) << 16);
}
inline Vector<float> widen_vector(const half_t* p) {
#if TINYOPS_ISA == 2
  return bits<Vector<float>>(_mm512_cvtph_ps(read<__m256i>(p)));
#elif TINYOPS_ISA == 1
  return bits<Vector<float>>(_mm256_cvtph_ps(read<__m128i>(p)));
#else
  const U32 u = __builtin_convertvector(read<U16>(p), U32);
  const U32 sign = (u & 0x8000u) << 16, magnitude = (u & 0x7fffu) << 13;
  const U32 finite = bits<U32>(bits<Vector<float>>(magnitude) * 0x1p112f);
  const I32 special = bits<I32>(magnitude) >= 0x0f800000;
  return bits<Vector<float>>(sign | (special ? magnitude | 0x70000000u : finite));
#endif
}

inline Vector<float> narrow_vector(Vector<float> v, float*) {
  return v;
}
inline Vector<double> narrow_vector(Vector<double> v, double*) {
  return v;
}
inline U16 narrow_vector(Vector<float> v, bfloat16_t*) {
  const U32 u = bits<U32>(v), even = u + 0x7fffu + ((u >> 16) & 1u);
  const I32 is_nan = v != v;
  return low_halves((is_nan ? u | 0x400000u : even) >> 16);
}
inline U16 narrow_vector(Vector<float> v, half_t* p) {
#if TINYOPS_ISA == 2
  (void)p;
  return bits<U16>(_mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif TINYOPS_ISA == 1
  (void)p;
  return bits<U16>(_mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  (void)p;
  U16 r;
  for (int k = 0; k < kLanes<float>; ++k) r[k] = narrow<half_t>(v[k]).bits;
  return r;
#endif
}

template <typename A>
inline A sum(Vector<A> v) {
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int w = kLanes<A> / 2; w > 0; w /= 2)
    for (int k = 0; k < w; ++k) lanes[k] += lanes[k + w];
  return lanes[0];
}

// The first (kHalf = 0) or second half of v, every element twice.
template <int kHalf, typename A>
inline Vector<A> repeat_half(Vector<A> v) {
  Index<A> from;
  for (int k = 0; k < kLanes<A>; ++k) from[k] = (kHalf * kLanes<A> + k) / 2;
  return __builtin_shuffle(v, from);
}
// The sums of neighbours in the 2n elements of a and b.
template <typename A>
inline Vector<A> sum_pairs(Vector<A> a, Vector<A> b) {
  Index<A> even;
  for (int k = 0; k < kLanes<A>; ++k) even[k] = 2 * k;
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// Past the caches: `p` must be aligned to the vector that is stored.
template <typename V>
inline void stream_vector(V v, void* p) {
#if TINYOPS_ISA == 2
  if constexpr (sizeof(V) == 64)
    return _mm512_stream_si512(static_cast<__m512i*>(p), bits<__m512i>(v));
#endif
#if TINYOPS_ISA >= 1
  if constexpr (sizeof(V) == 32)
    return _mm256_stream_si256(static_cast<__m256i*>(p), bits<__m256i>(v));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 16)
    return _mm_stream_si128(static_cast<__m128i*>(p), bits<__m128i>(v));
#endif
  std::memcpy(p, &v, sizeof(v));
}
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- loops: one body for the vectors and the tail ---------------------------------------------

// The same names on a vector of elements (Wide) and on one element (Single).
template <typename A>
struct Wide {
  using Value = Vector<A>;
  static constexpr int kStep = kLanes<A>;
  template <typename T>
  static Value load(const T* p) {
    return widen_vector(p);
  }
  template <bool kStream = false, typename T>
  static void store(T* p, Value v) {
    const auto n = narrow_vector(v, p);
    if constexpr (kStream)
      stream_vector(n, p);
    else
      std::memcpy(p, &n, sizeof(n));
  }
};
template <typename A>
struct Single {
  using Value = A;
  static constexpr int kStep = 1;
  template <typename T>
  static Value load(const T* p) {
    return widen(*p);
  }
  template <bool kStream = false, typename T>
  static void store(T* p, Value v) {
    *p = narrow<T>(v);
  }
};

// body(lanes, i) for i = 0, step, 2*step, ... : whole vectors first, then single elements.
template <typename A, typename F>
inline void for_lanes(int64_t n, F&& body) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) body(Wide<A>{}, i);
  for (; i < n; ++i) body(Single<A>{}, i);
}

// A running sum that takes vectors and single elements.
template <typename A>
struct Sum {
  Vector<A> wide{};
  A single = 0;
  void add(Vector<A> v) { wide += v; }
  void add(A v) { single += v; }
  A total() const { return sum<A>(wide) + single; }
};

}  // namespace
}  // namespace tinyops
