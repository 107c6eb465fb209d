// Logarithms and exponentials with the same bits on every device and instruction set: additions,
// multiplications and divisions of float64 in one order. The mathematical libraries of a CPU and of
// a GPU differ in the last bit. Files that include this are compiled without contraction.
#pragma once
#include <cstring>

#include "../common.h"

namespace tinyops::exact {

TINYOPS_HD uint64_t bits_of(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof(u));
  return u;
}
TINYOPS_HD double double_of(uint64_t u) {
  double x;
  memcpy(&x, &u, sizeof(x));
  return x;
}

constexpr uint64_t kOne = 0x3FF0000000000000ull, kInfinity = 0x7FF0000000000000ull;
constexpr uint64_t kLeastNormal = uint64_t{1} << 52;

// ---- Logarithms ---------------------------------------------------------------------------------
// The parts are templates on D, double or a vector of doubles of a CPU kernel.

// log(1 + f) for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, by log(1 + f) = 2 atanh(s), s = f / (2 + f).
// The series ends with s^21 / 21; what is left out is below 3e-18 of the result.
template <typename D>
TINYOPS_HD D log1p_near(D f) {
  const D s = f / (2.0 + f), z = s * s;
  D tail = z * (1.0 / 21) + 1.0 / 19;
  tail = tail * z + 1.0 / 17;
  tail = tail * z + 1.0 / 15;
  tail = tail * z + 1.0 / 13;
  tail = tail * z + 1.0 / 11;
  tail = tail * z + 1.0 / 9;
  tail = tail * z + 1.0 / 7;
  tail = tail * z + 1.0 / 5;
  tail = tail * z + 1.0 / 3;
  const D twice = s + s;
  return twice + twice * (z * tail);
}

// e * log(2) + log_m, with log(2) in two parts: the first has 21 bits, so that e times it is exact.
template <typename D>
TINYOPS_HD D add_exponent(D e, D log_m) {
  return e * 0x1.62e42p-1 + (e * 0x1.fdf473de6af28p-22 + log_m);
}

// The bits of sqrt(1/2) less those of 1/2: what lies above 2^e * sqrt(1/2) is given to the exponent
// e + 1 by adding the complement to the bits of x.
constexpr uint64_t kHalfRoot = 0x3FE6A09E667F3BCDull;
TINYOPS_HD uint64_t biased_exponent(uint64_t bits) {
  return (bits + (kOne - kHalfRoot)) >> 52;
}

// The natural logarithm, within 4e-16 of its size: -infinity of 0, NaN of what is below.
TINYOPS_HD double log(double x) {
  uint64_t u = bits_of(x);
  int shift = 1023;
  if (u - kLeastNormal >= kInfinity - kLeastNormal) {  // not a positive, normal, finite number
    if (u == kInfinity) return x;
    if (!(x > 0.0)) return x == 0.0 ? -double_of(kInfinity) : __builtin_nan("");
    u = bits_of(x * 0x1p54);
    shift += 54;
  }
  const uint64_t e = biased_exponent(u);
  const double m = double_of(u - (e << 52) + kOne);
  return add_exponent(static_cast<double>(static_cast<int>(e) - shift), log1p_near(m - 1.0));
}

// A draw of the standard exponential distribution: -log(1 - v), v = (r + 1/2) / 2^64, of 64 random
// bits r. It lies between 2^-65 and 45.1, is never zero, and within 5e-16 of its own size.
constexpr uint64_t kNearOne = 0x4AFB0CCC06219B7Cull;  // (1 - sqrt(1/2)) * 2^64, rounded up
TINYOPS_HD double exponential(uint64_t r) {
  if (r < kNearOne) return -log1p_near(-((static_cast<double>(r) + 0.5) * 0x1p-64));
  return -log((static_cast<double>(~r) + 0.5) * 0x1p-64);
}

// ---- The exponential function -------------------------------------------------------------------

// 2^n for normal results.
TINYOPS_HD double power_of_two(int n) {
  return double_of(static_cast<uint64_t>(n + 1023) << 52);
}

// e^-x for x >= 0, within one unit in the last place; 0 for infinity and NaN.
TINYOPS_HD double exp_minus(double x) {
  constexpr double kLog2e = 1.4426950408889634;
  constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;  // ln 2, in parts
  if (!(x < 746.0)) return 0.0;  // below the smallest subnormal number
  const int n = static_cast<int>(x * kLog2e + 0.5);
  const double r = (n * kLn2High - x) + n * kLn2Low;  // |r| <= ln(2) / 2; the product is exact
  double sum = 1.0 / 6227020800.0;                    // Taylor: what is left out is below 2^-57
  sum = sum * r + 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 1.0 / 2.0;
  const double m = 1.0 + (r + r * r * sum);
  return m * power_of_two(-(n / 2)) * power_of_two(n / 2 - n);  // rounded once, where subnormal
}

}  // namespace tinyops::exact
