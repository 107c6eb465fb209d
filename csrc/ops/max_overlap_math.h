// exp and log from additions, multiplications and divisions alone. The mathematical libraries of a
// CPU and of a GPU differ in the last bit; these give the same one wherever nothing is contracted.
// Errors are below 2 ulp of double, so that a result rounded to float32 is nearly always the best.
#pragma once
#include <cmath>

#include "../common.h"

namespace tinyops::max_overlap {

// e^-x for x >= 0; 0 for infinity and NaN.
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
  return ldexp(1.0 + (r + r * r * sum), -n);
}

// ln x for finite x > 0; -infinity for 0 and infinity or NaN for those.
TINYOPS_HD double natural_log(double x) {
  if (x == 0.0) return -HUGE_VAL;
  if (!(x < HUGE_VAL)) return x;
  int e = 0;
  double m = frexp(x, &e);  // in [0.5, 1)
  if (m < 0.70710678118654757) {
    m *= 2.0;
    --e;
  }
  const double s = (m - 1.0) / (m + 1.0), t = s * s;  // |s| <= 0.172; ln m = 2 artanh s
  double sum = 1.0 / 23;
  sum = sum * t + 1.0 / 21;
  sum = sum * t + 1.0 / 19;
  sum = sum * t + 1.0 / 17;
  sum = sum * t + 1.0 / 15;
  sum = sum * t + 1.0 / 13;
  sum = sum * t + 1.0 / 11;
  sum = sum * t + 1.0 / 9;
  sum = sum * t + 1.0 / 7;
  sum = sum * t + 1.0 / 5;
  sum = sum * t + 1.0 / 3;
  constexpr double kLn2 = 0.69314718055994531;
  return e * kLn2 + (2.0 * s + 2.0 * s * t * sum);
}

}  // namespace tinyops::max_overlap
