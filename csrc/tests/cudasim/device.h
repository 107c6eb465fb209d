// cudasim: what a kernel may call. Included by cuda_runtime.h.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "executor.h"

// ---- Barriers and warp operations ----------------------------------------------------------

namespace cudasim {

// The dynamic shared memory of the block; `extern __shared__` has no counterpart in C++.
template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(executor.shared());
}

}  // namespace cudasim

inline void __syncthreads() {
  cudasim::executor.sync_block(false);
}
inline int __syncthreads_count(int predicate) {
  return static_cast<int>(cudasim::executor.sync_block(predicate != 0).second);
}
inline int __syncthreads_or(int predicate) {
  return __syncthreads_count(predicate) != 0;
}
inline int __syncthreads_and(int predicate) {
  const auto [came, agreed] = cudasim::executor.sync_block(predicate != 0);
  return came == agreed;
}

inline void __nanosleep(unsigned) {
  cudasim::executor.give_way();
}

inline void __syncwarp(unsigned mask = ~0u) {
  cudasim::executor.sync_warp(cudasim::Wait::syncwarp, mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using cudasim::Wait;
  return static_cast<unsigned>(cudasim::executor.sync_warp(Wait::ballot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  return cudasim::executor.sync_warp(cudasim::Wait::any, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return cudasim::executor.sync_warp(cudasim::Wait::all, mask, predicate == 0) == 0;
}
// CUDA promises nothing about which lanes are together. Alone is a right answer, and the one that
// finds code relying on more.
inline unsigned __activemask() {
  return 1u << cudasim::executor.lane();
}

namespace cudasim {

template <typename T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> || sizeof(T) == 2, "not a type that CUDA can shuffle");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = executor.sync_warp(Wait::shuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// {lane, first lane of its segment, last lane of it}
inline std::tuple<unsigned, unsigned, unsigned> segment(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    throw std::invalid_argument("cudasim: the width of a shuffle is a power of two up to 32, not " +
                                std::to_string(width));
  const unsigned lane = executor.lane(), within = static_cast<unsigned>(width) - 1;
  return {lane, lane & ~within, lane | within};
}

}  // namespace cudasim

// As in PTX, five bits of the offset count, and a lane outside the segment yields one's own value
// (for xor, only one above it). A lane that takes no part yields bytes 0xff: NaN, or -1.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const auto [lane, first, last] = cudasim::segment(width);
  return cudasim::shuffle(mask, value, first + (static_cast<unsigned>(source) & (last - first)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const auto [lane, first, last] = cudasim::segment(width);
  return cudasim::shuffle(mask, value, lane < first + delta % 32 ? lane : lane - delta % 32);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const auto [lane, first, last] = cudasim::segment(width);
  return cudasim::shuffle(mask, value, lane + delta % 32 > last ? lane : lane + delta % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const auto [lane, first, last] = cudasim::segment(width);
  const unsigned source = lane ^ (static_cast<unsigned>(lanes) & 31);
  return cudasim::shuffle(mask, value, source > last ? lane : source);
}

inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

// ---- Atomics: plain code, since one thread runs at a time --------------------------------------
// The types are those CUDA has: a call that compiles here compiles there.

namespace cudasim {

template <typename T, typename... Allowed>
concept OneOf = (std::same_as<T, Allowed> || ...);
using ull = unsigned long long;
template <typename T>
concept AtomicBits = OneOf<T, int, unsigned, ull>;
template <typename T>
concept AtomicOrdered = OneOf<T, int, unsigned, long long, ull>;
template <typename T>
using Value = std::type_identity_t<T>;  // takes the type from the pointer: atomicAdd(&size, 1)

}  // namespace cudasim

template <cudasim::OneOf<int, unsigned, cudasim::ull, float, double> T>
T atomicAdd(T* p, cudasim::Value<T> v) {
  const T old = *p;
  if constexpr (std::integral<T>)
    __builtin_add_overflow(old, v, p);  // wraps, as on the GPU
  else
    *p = old + v;
  return old;
}
template <cudasim::AtomicOrdered T>
T atomicMax(T* p, cudasim::Value<T> v) {
  return std::exchange(*p, std::max(*p, v));
}
template <cudasim::AtomicOrdered T>
T atomicMin(T* p, cudasim::Value<T> v) {
  return std::exchange(*p, std::min(*p, v));
}
template <cudasim::OneOf<int, unsigned, cudasim::ull, float> T>
T atomicExch(T* p, cudasim::Value<T> v) {
  return std::exchange(*p, v);
}
template <cudasim::OneOf<int, unsigned, cudasim::ull, unsigned short> T>
T atomicCAS(T* p, cudasim::Value<T> expected, cudasim::Value<T> v) {
  return std::exchange(*p, *p == expected ? v : *p);
}
template <cudasim::AtomicBits T>
T atomicOr(T* p, cudasim::Value<T> v) {
  return std::exchange(*p, *p | v);
}
template <cudasim::AtomicBits T>
T atomicAnd(T* p, cudasim::Value<T> v) {
  return std::exchange(*p, *p & v);
}

// ---- Arithmetic ----------------------------------------------------------------------------

// Exactly CUDA's overloads: min(int, int64_t) is ambiguous there, so it has to be here.
#define CUDASIM_MIN_MAX(A, B, R) \
  inline R min(A a, B b) {       \
    return std::min<R>(a, b);    \
  }                              \
  inline R max(A a, B b) {       \
    return std::max<R>(a, b);    \
  }
#define CUDASIM_MIN_MAX_MIXED(S, U) \
  CUDASIM_MIN_MAX(S, S, S)          \
  CUDASIM_MIN_MAX(U, U, U)          \
  CUDASIM_MIN_MAX(S, U, U)          \
  CUDASIM_MIN_MAX(U, S, U)
CUDASIM_MIN_MAX_MIXED(int, unsigned)
CUDASIM_MIN_MAX_MIXED(long, unsigned long)
CUDASIM_MIN_MAX_MIXED(long long, unsigned long long)
#undef CUDASIM_MIN_MAX_MIXED
#undef CUDASIM_MIN_MAX
// Of a number and a NaN, the number.
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}
inline double min(float a, double b) {
  return fmin(a, b);
}
inline double max(float a, double b) {
  return fmax(a, b);
}
inline double min(double a, float b) {
  return fmin(a, b);
}
inline double max(double a, float b) {
  return fmax(a, b);
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
void __stwb(T* p, T v) {
  *p = v;
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}  // 1 for bit 0, 0 if there is none
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
constexpr unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((static_cast<__int128>(a) * b) >> 64);
}

inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}

inline float rsqrtf(float x) {
  return 1 / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1 / sqrt(x);
}
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __saturatef(float x) {
  return fminf(fmaxf(x, 0), 1);
}  // NaN becomes 0
