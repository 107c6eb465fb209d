// Tests of cudasim's types and device functions: 16-bit floats exhaustively, atomics, arithmetic.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>

#include "cudasim/check.h"

namespace {

using cudasim::check;

constexpr double kInf = std::numeric_limits<double>::infinity();

// ---- 16-bit floats -------------------------------------------------------------------------

template <typename T>
struct Format;
template <>
struct Format<__half> {
  static constexpr int mantissa = 10, bias = 15, infinity = 0x7c00;
};
template <>
struct Format<__nv_bfloat16> {
  static constexpr int mantissa = 7, bias = 127, infinity = 0x7f80;
};

// What the bits mean, by the definition of IEEE 754. At infinity: the value an exponent without
// upper limit would give, which is where overflow begins to round from.
template <typename T>
double meaning(int bits) {
  const int exponent = bits >> Format<T>::mantissa, hidden = 1 << Format<T>::mantissa;
  const int digits = (bits & (hidden - 1)) + (exponent ? hidden : 0);
  return std::ldexp(digits, std::max(exponent, 1) - Format<T>::bias - Format<T>::mantissa);
}

template <typename T, typename From>
bool becomes(From value, int bits) {
  return T(value).bits == bits && T(-value).bits == (bits | 0x8000);
}

template <typename T>
void test_patterns(const std::string& name) {
  bool exact = true, nan = true, same = true;
  for (int bits = 0; bits < 0x10000; ++bits) {
    const T x = std::bit_cast<T>(static_cast<uint16_t>(bits));
    const int magnitude = bits & 0x7fff;
    const float value = x;
    if (magnitude > Format<T>::infinity) {
      nan &= std::isnan(value) && std::isnan(static_cast<float>(T(value)));
      continue;
    }
    const double expected = magnitude == Format<T>::infinity ? kInf : meaning<T>(magnitude);
    exact &= std::fabs(value) == expected && std::signbit(value) == (bits > 0x7fff);
    same &= T(value).bits == bits && T(static_cast<double>(value)).bits == bits;
  }
  check(exact && same, name + ": all patterns go to float, double and back");
  check(nan, name + ": NaN stays NaN");
}

// Every midpoint between neighbours, and the numbers next to it, decide every rounding there is.
template <typename T, typename From>
void test_rounding(const std::string& name) {
  bool ok = becomes<T>(From(0), 0);
  for (int bits = 0; bits < Format<T>::infinity; ++bits) {
    const double low = meaning<T>(bits), high = meaning<T>(bits + 1);
    const auto middle = static_cast<From>((low + high) / 2);
    ok &= middle == (low + high) / 2;
    ok &= becomes<T>(middle, bits + (bits & 1));
    ok &= becomes<T>(std::nextafter(middle, From(0)), bits);
    ok &= becomes<T>(std::nextafter(middle, std::numeric_limits<From>::infinity()), bits + 1);
  }
  check(ok, name + ": ties to even, their neighbours to the nearer side, overflow to infinity");

  ok = becomes<T>(std::numeric_limits<From>::infinity(), Format<T>::infinity);
  ok &= becomes<T>(std::numeric_limits<From>::max(), Format<T>::infinity);
  ok &= becomes<T>(std::numeric_limits<From>::denorm_min(), 0);
  ok &= std::isnan(static_cast<float>(T(std::numeric_limits<From>::quiet_NaN())));
  std::mt19937_64 random(1);
  for (int i = 0; i < 300000; ++i) {
    using Bits = std::conditional_t<sizeof(From) == 4, uint32_t, uint64_t>;
    const From x = std::bit_cast<From>(static_cast<Bits>(random()));
    const double magnitude = std::fabs(static_cast<double>(x));
    if (std::isnan(x) || magnitude >= meaning<T>(Format<T>::infinity)) continue;
    const int bits = T(x).bits & 0x7fff;
    const double error = std::fabs(magnitude - meaning<T>(bits));
    ok &= std::signbit(static_cast<float>(T(x))) == std::signbit(x);
    ok &= bits == 0 || error <= std::fabs(magnitude - meaning<T>(bits - 1));
    ok &= bits == Format<T>::infinity || error <= std::fabs(magnitude - meaning<T>(bits + 1));
  }
  check(ok, name + ": extremes and random bits");
}

void test_half_interface() {
  static_assert(sizeof(__half) == 2 && std::is_trivially_copyable_v<__half>);
  static_assert(sizeof(__nv_bfloat16) == 2 && std::is_trivially_copyable_v<__nv_bfloat16>);
  static_assert(std::is_trivially_default_constructible_v<__half>);
  static_assert(std::is_trivially_default_constructible_v<__nv_bfloat16>);
  bool ok = static_cast<float>(__half(1.5f)) == 1.5f && __half2float(__float2half(2.0f)) == 2;
  ok &= __float2half_rn(1.0f).bits == 0x3c00 && static_cast<__half>(3).bits == 0x4200;
  ok &= __bfloat162float(__float2bfloat16(-2.0f)) == -2 && __float2bfloat16_rn(1).bits == 0x3f80;
  float sum = 1;
  sum += __half(0.5f);
  sum += __nv_bfloat16(0.25);
  ok &= sum == 1.75f && __half(1.0f) < __half(2.0f);
  // 1 + 2^-11 + 2^-40 rounds up; by way of float it would be a tie, and round down to even.
  ok &= __half(1 + 0x1p-11 + 0x1p-40).bits == 0x3c01;
  ok &= __nv_bfloat16(1 + 0x1p-8 + 0x1p-40).bits == 0x3f81;
  check(ok, "conversions by name, and double rounded only once");
}

// ---- Atomics and arithmetic ----------------------------------------------------------------

template <typename T>
bool atomics_work() {
  T x = 12;
  bool ok = atomicMax(&x, 20) == 12 && atomicMax(&x, 7) == 20 && x == 20;
  ok &= atomicMin(&x, 5) == 20 && atomicMin(&x, 6) == 5 && x == 5;
  if constexpr (!std::is_same_v<T, long long>) {
    ok &= atomicAdd(&x, 3) == 5 && x == 8;
    ok &= atomicOr(&x, 3) == 8 && x == 11 && atomicAnd(&x, 6) == 11 && x == 2;
    ok &= atomicExch(&x, 9) == 2 && x == 9;
    ok &= atomicCAS(&x, 9, 4) == 9 && x == 4 && atomicCAS(&x, 9, 1) == 4 && x == 4;
    T top = std::numeric_limits<T>::max();
    ok &= atomicAdd(&top, 1) == std::numeric_limits<T>::max();
    ok &= top == std::numeric_limits<T>::min();
  }
  return ok;
}

template <typename A, typename B>
concept HasMin = requires(A a, B b) { min(a, b); };
template <typename T>
concept HasAtomicAdd = requires(T* p) { atomicAdd(p, T(1)); };

void test_device_functions() {
  bool ok = atomics_work<int>() && atomics_work<unsigned>() && atomics_work<long long>() &&
            atomics_work<unsigned long long>();
  float f = 1;
  double d = 1;
  unsigned short s = 3;
  ok &= atomicAdd(&f, 2) == 1 && f == 3 && atomicAdd(&d, 2) == 1 && d == 3;
  ok &= atomicExch(&f, 4) == 3 && atomicCAS(&s, 3, 5) == 3 && s == 5;
  static_assert(!HasAtomicAdd<long> && !HasAtomicAdd<short>);
  check(ok, "atomics, for the types that CUDA has");

  static_assert(std::is_same_v<decltype(min(1, 2u)), unsigned>);
  static_assert(std::is_same_v<decltype(max(1L, 2L)), long>);
  static_assert(std::is_same_v<decltype(min(1LL, 2ULL)), unsigned long long>);
  static_assert(std::is_same_v<decltype(max(1.0f, 2.0)), double>);
  static_assert(!HasMin<int, long> && !HasMin<int, long long>);  // ambiguous in CUDA as well
  ok = min(-1, 2) == -1 && max(-1, 2u) == ~0u && min(2.0f, 1.0f) == 1;
  ok &= max(std::nanf(""), 1.0f) == 1 && min(static_cast<short>(3), static_cast<short>(2)) == 2;
  check(ok, "min and max of mixed types");

  ok = __popc(0xf0f0u) == 8 && __popcll(~0ull) == 64;
  ok &= __ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1LL << 40) == 41 && __ffsll(0) == 0;
  ok &= __clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(0) == 64 && __clzll(1) == 63;
  ok &= __brev(1u) == 0x80000000u && __brev(0x0000a001u) == 0x80050000u;
  ok &= __umulhi(0xffffffffu, 0xffffffffu) == 0xfffffffeu;
  ok &= __umul64hi(~0ull, ~0ull) == ~0ull - 1;
  ok &= __mul64hi(-1, 5) == -1 && __mul64hi(1LL << 62, 8) == 2;
  ok &= __float_as_int(-0.0f) == std::numeric_limits<int>::min();
  ok &= __int_as_float(0x3f800000) == 1 && __float_as_uint(1.0f) == 0x3f800000u;
  ok &= __uint_as_float(0x40000000u) == 2 && __longlong_as_double(__double_as_longlong(3)) == 3;
  const int x = 7;
  ok &= __ldg(&x) == 7 && rsqrtf(4) == 0.5f && __saturatef(2) == 1;
  __threadfence();
  __threadfence_block();
  __threadfence_system();
  check(ok, "bits and products");

  static_assert(alignof(uint2) == 8 && alignof(uint4) == 16 && alignof(int4) == 16);
  static_assert(alignof(float2) == 8 && alignof(float4) == 16 && alignof(double2) == 16);
  static_assert(sizeof(float3) == 12 && sizeof(uint3) == 12 && sizeof(double4) == 32);
  ok = make_float4(1, 2, 3, 4).w == 4 && make_uint2(1, 2).y == 2 && make_int4(1, 2, 3, 4).z == 3;
  struct __align__(16) Wide {
    float a;
  };
  static_assert(alignof(Wide) == 16 && warpSize == 32);
  check(ok, "vector types");
}

}  // namespace

int main() {
  test_patterns<__half>("half");
  test_patterns<__nv_bfloat16>("bfloat16");
  test_rounding<__half, float>("float to half");
  test_rounding<__half, double>("double to half");
  test_rounding<__nv_bfloat16, float>("float to bfloat16");
  test_rounding<__nv_bfloat16, double>("double to bfloat16");
  test_half_interface();
  test_device_functions();
  return cudasim::summary();
}
