// cudasim: __nv_bfloat16, the upper half of a float.
#pragma once

#include "cuda_fp16.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;  // trivial, so that __shared__ arrays of it are possible
  constexpr __nv_bfloat16(float x) : bits(cudasim::round_to_bits<8, 7>(x)) {}
  constexpr __nv_bfloat16(double x) : bits(cudasim::round_to_bits<8, 7>(x)) {}
  constexpr __nv_bfloat16(std::integral auto x) : __nv_bfloat16(static_cast<double>(x)) {}

  constexpr operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};
using nv_bfloat16 = __nv_bfloat16;

constexpr float __bfloat162float(__nv_bfloat16 x) {
  return x;
}
constexpr __nv_bfloat16 __float2bfloat16(float x) {
  return x;
}
constexpr __nv_bfloat16 __float2bfloat16_rn(float x) {
  return x;
}
constexpr __nv_bfloat16 __double2bfloat16(double x) {
  return x;
}
constexpr uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.bits;
}
constexpr __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  return std::bit_cast<__nv_bfloat16>(bits);
}

__nv_bfloat16 operator+(__nv_bfloat16, __nv_bfloat16) = delete;  // as for __half
__nv_bfloat16 operator-(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator*(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator/(__nv_bfloat16, __nv_bfloat16) = delete;
