// Philox against the known answers of its authors (Random123, kat_vectors), and exact_math.h
// against long double.
#include <cmath>
#include <cstdio>
#include <random>

#include "../ops/exact_math.h"
#include "../ops/philox.h"
#include "../ops/sample_negatives.h"

namespace {

int failures = 0;

void expect(bool ok, const char* what, double at) {
  if (!ok && ++failures < 20) std::printf("FAIL %s at %a\n", what, at);
}

void check_philox(uint64_t key, const uint32_t (&counter)[4], const uint32_t (&words)[4]) {
  const auto block = tinyops::philox::block(key, counter[0], counter[1], counter[2], counter[3]);
  for (int k = 0; k < 4; ++k) expect(block.word[k] == words[k], "philox word", k);
}

long double worst_log = 0, worst_exponential = 0, worst_exp = 0;  // errors relative to the result

void check_log(double x) {
  const long double exact = std::log(static_cast<long double>(x));
  const double result = tinyops::exact::log(x);
  if (exact == 0) return expect(result == 0, "log of 1", x);
  worst_log = std::fmax(worst_log, std::fabs((result - exact) / exact));
}

void check_exponential(uint64_t r) {
  // (r + 1/2) / 2^64 and its complement, both exact in 64 bits of mantissa but for the last one
  const long double v = (static_cast<long double>(r) + 0.5L) * 0x1p-64L;
  const long double u = (static_cast<long double>(~r) + 0.5L) * 0x1p-64L;
  const long double exact = v < 0.5L ? -std::log1p(-v) : -std::log(u);
  const double result = tinyops::exact::exponential(r);
  worst_exponential = std::fmax(worst_exponential, std::fabs((result - exact) / exact));
}

void check_exp(double x) {
  const long double exact = std::exp(-static_cast<long double>(x));
  const long double error = std::fabs(tinyops::exact::exp_minus(x) - exact);
  if (exact < 0x1p-1022L)  // then rounding makes up to half of the smallest number
    return expect(error <= 0x1p-1075L + 1.6e-16L * exact, "exp of subnormal size", x);
  worst_exp = std::fmax(worst_exp, error / exact);
}

void check_ends() {
  using tinyops::exact::exp_minus, tinyops::exact::log;
  expect(exp_minus(0) == 1, "exp of", 0);
  for (const double x : {746.0, 1e300, static_cast<double>(INFINITY), static_cast<double>(NAN)})
    expect(exp_minus(x) == 0, "exp of", -x);
  for (const double x : {0.0, -0.0}) expect(log(x) == -INFINITY, "log of", x);
  expect(log(INFINITY) == INFINITY, "log of", INFINITY);
  for (const double x :
       {-0x1p-1074, -1.0, -static_cast<double>(INFINITY), static_cast<double>(NAN)})
    expect(std::isnan(log(x)), "log of", x);
  for (const double x : {0x1p-1074, 0x1.8p-1073, 0x1.fp-1030, 0x1p-1022, 0x1.fffffffffffffp1023}) {
    check_log(x);
    check_log(std::nextafter(x, 1));
  }
}

void check_places() {
  using namespace tinyops::sample_negatives;
  for (uint32_t item = 0; item < 1000; ++item)
    expect(item_of(block_of(item), word_of(item)) == item, "place", item);
  const double values[] = {-INFINITY, -45.0, -1e-300, 0.0, 1e-300, 1.0, 45.0, INFINITY};
  for (int k = 0; k < 8; ++k) {
    expect(from_ordered(to_ordered(values[k])) == values[k], "order, and back", values[k]);
    if (k) expect(to_ordered(values[k - 1]) < to_ordered(values[k]), "order", values[k]);
  }
}

}  // namespace

int main() {
  check_philox(0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  check_philox(~uint64_t{0}, {~0u, ~0u, ~0u, ~0u},
               {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  check_philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  check_places();
  check_ends();

  std::mt19937_64 random(1);
  for (int k = 0; k < 1'000'000; ++k) {
    const uint64_t r = random();
    check_log(
        std::ldexp(1 + static_cast<double>(r >> 12) * 0x1p-52, static_cast<int>(r % 140) - 70));
    check_log(1 + (static_cast<double>(r >> 11) * 0x1p-53 - 0.5) * std::ldexp(1, -(k % 50)));
    check_exponential(r >> k % 64);
    check_exponential(~(r >> k % 64));
    check_exp(std::ldexp(static_cast<double>(r), -64) * (k % 2 ? 750 : 1));
  }
  for (const double x : {1.0, 0x1p-65, 45.1, std::sqrt(0.5), std::sqrt(2.0)}) {
    check_log(x);
    check_log(std::nextafter(x, 0));
    check_log(std::nextafter(x, 99));
  }
  for (uint64_t r = 0; r < 1000; ++r) {
    check_exponential(r);
    check_exponential(~r);
    check_exponential(tinyops::exact::kNearOne - 500 + r);
  }
  expect(worst_log < 4e-16L, "error of log", static_cast<double>(worst_log));
  expect(worst_exp < 1.6e-16L, "error of exp", static_cast<double>(worst_exp));
  expect(worst_exponential < 5e-16L, "error of exponential",
         static_cast<double>(worst_exponential));
  std::printf("exact_math: %d failures, errors %.2Le, %.2Le and %.2Le\n", failures, worst_log,
              worst_exponential, worst_exp);
  return failures != 0;
}
