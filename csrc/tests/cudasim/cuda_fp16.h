// cudasim: __half as a pair of bytes, converted by integer arithmetic that rounds once.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>

namespace cudasim {

// The 16-bit pattern nearest to `value`, ties to even, for a format with a sign, `kExponentBits`
// and `kMantissaBits`. Serves float as well, since every float is a double.
template <int kExponentBits, int kMantissaBits>
constexpr uint16_t round_to_bits(double value) {
  constexpr int kMinExponent = 2 - (1 << (kExponentBits - 1));
  constexpr uint64_t kInfinity = ((uint64_t{1} << kExponentBits) - 1) << kMantissaBits;
  const auto bits = std::bit_cast<uint64_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 63 << 15);
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  if (value != value) return 0x7fff;  // the one NaN that the hardware's conversions produce
  if (exponent == 1024) return static_cast<uint16_t>(sign | kInfinity);

  // |value| = significand * 2^(exponent - 52); the last place of the result is worth
  // 2^(scale - kMantissaBits). Doubles below their own normal range are far below half of it.
  const uint64_t significand = (bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52;
  const int scale = exponent < kMinExponent ? kMinExponent : exponent;
  const int shift = scale - exponent + 52 - kMantissaBits;
  if (shift > 53) return sign;
  const uint64_t rest = significand & ((uint64_t{1} << shift) - 1);
  const uint64_t tie = uint64_t{1} << (shift - 1);
  uint64_t rounded = significand >> shift;
  rounded += rest > tie || (rest == tie && (rounded & 1));
  // The leading bit adds one to the exponent field, and so does a carry out of the mantissa.
  rounded += static_cast<uint64_t>(scale - kMinExponent) << kMantissaBits;
  return static_cast<uint16_t>(sign | (rounded < kInfinity ? rounded : kInfinity));
}

}  // namespace cudasim

struct __half {
  uint16_t bits;

  __half() = default;  // trivial, so that __shared__ arrays of it are possible
  constexpr __half(float x) : bits(cudasim::round_to_bits<5, 10>(x)) {}
  constexpr __half(double x) : bits(cudasim::round_to_bits<5, 10>(x)) {}
  constexpr __half(std::integral auto x) : __half(static_cast<double>(x)) {}

  constexpr operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t magnitude = bits & 0x7fff;
    if (magnitude < 0x0400) {  // zero or subnormal: a multiple of 2^-24, exact in float
      const float value = static_cast<float>(magnitude) * 0x1p-24f;
      return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
    }
    const uint32_t rebias = magnitude < 0x7c00 ? 127 - 15 : 255 - 31;
    return std::bit_cast<float>(((magnitude << 13) + (rebias << 23)) | sign);
  }
};
using half = __half;

constexpr float __half2float(__half x) {
  return x;
}
constexpr __half __float2half(float x) {
  return x;
}
constexpr __half __float2half_rn(float x) {
  return x;
}
constexpr __half __double2half(double x) {
  return x;
}
constexpr uint16_t __half_as_ushort(__half x) {
  return x.bits;
}
constexpr __half __ushort_as_half(uint16_t bits) {
  return std::bit_cast<__half>(bits);
}

// Kernels compute in float (acc_t); with float's operators a sum of two halves would keep more
// digits here than on a GPU.
__half operator+(__half, __half) = delete;
__half operator-(__half, __half) = delete;
__half operator*(__half, __half) = delete;
__half operator/(__half, __half) = delete;
