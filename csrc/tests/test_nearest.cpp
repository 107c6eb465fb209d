// NearestAxis and Divider against plain integer division.
#include <cstdio>
#include <random>

#include "../ops/nearest.h"

namespace {

int failures = 0;

void expect(bool ok, const char* what, int64_t out, int64_t in, int64_t at) {
  if (ok) return;
  if (++failures < 20)
    std::printf("FAIL %s: out %ld in %ld at %ld\n", what, static_cast<long>(out),
                static_cast<long>(in), static_cast<long>(at));
}

void check_axis(int64_t out, int64_t in, int64_t d, int64_t s) {
  const tinyops::NearestAxis axis(out, in);
  expect(axis.source(static_cast<int32_t>(d)) == d * in / out, "source", out, in, d);
  const int64_t first = static_cast<int64_t>((static_cast<__int128>(s) * out + in - 1) / in);
  expect(axis.first(static_cast<int32_t>(s)) == first, "first", out, in, s);
}

}  // namespace

int main() {
  for (int64_t out = 1; out <= 130; ++out)
    for (int64_t in = 1; in <= 130; ++in)
      for (int64_t k = 0; k <= 130; ++k) check_axis(out, in, k % out, k % (in + 1));

  std::mt19937_64 random(1);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  for (int k = 0; k < 2'000'000; ++k) {
    const int64_t out = 1 + below(k % 2 ? kMost : 5000), in = 1 + below(k % 3 ? kMost : 5000);
    check_axis(out, in, below(out), below(in + 1));
    check_axis(out, in, out - 1, in);  // the ends
    const int64_t n = below(kMost);
    expect(tinyops::Divider(in)(static_cast<int32_t>(n)) == n / in, "divide", n, in, 0);
  }
  for (const int64_t size : {int64_t{0}, int64_t{7}}) {
    const tinyops::NearestAxis empty(0, size);
    expect(empty.first(0) == 0 && empty.first(static_cast<int32_t>(size)) == 0, "empty", 0, size,
           0);
  }
  std::printf("nearest: %d failures\n", failures);
  return failures != 0;
}
