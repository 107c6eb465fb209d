// Nearest-neighbour resizing of one axis in exact integers, for any two sizes, without a division.
#pragma once
#include "../common.h"

namespace tinyops {

// Output index d reads source index floor(d * in / out); source s is read by the output indices
// first(s) .. first(s + 1) - 1, possibly none. Both maps are a multiplication by a fixed-point
// ratio: with in = q*out + r and m = ceil(2^64 * r / out), floor(d*m / 2^64) is exact because the
// error d/2^64 < 2^-33 is smaller than the distance 1/out > 2^-31 to the next integer. A 64-bit
// division would be a subroutine call on a GPU.
struct NearestAxis {
  int32_t out = 0, in = 0;             // sizes, below 2^31
  uint32_t q_source = 0, q_first = 0;  // integer parts of in/out and out/in
  uint64_t m_source = 0, m_first = 0;  // fractions, see above; m_first is rounded down instead

  NearestAxis() = default;
  NearestAxis(int64_t out_size, int64_t in_size)
      : out(static_cast<int32_t>(out_size)), in(static_cast<int32_t>(in_size)) {
    using uint128 = unsigned __int128;
    const auto fraction = [](uint64_t r, uint64_t d) {
      return static_cast<uint64_t>(((static_cast<uint128>(r) << 64) + d - 1) / d);
    };
    const uint64_t o = static_cast<uint64_t>(out_size), i = static_cast<uint64_t>(in_size);
    if (o == 0 || i == 0) return;  // nothing reads, first() is 0 everywhere
    q_source = static_cast<uint32_t>(i / o);
    m_source = fraction(i % o, o);
    q_first = static_cast<uint32_t>(o / i);
    m_first = o % i ? fraction(o % i, i) - 1 : 0;
  }

  static TINYOPS_HD uint32_t mul_high(uint32_t x, uint64_t m) {
    const uint64_t low = (static_cast<uint64_t>(x) * static_cast<uint32_t>(m)) >> 32;
    return static_cast<uint32_t>((static_cast<uint64_t>(x) * (m >> 32) + low) >> 32);
  }
  // floor(d * in / out)
  TINYOPS_HD int32_t source(int32_t d) const {
    const uint32_t x = static_cast<uint32_t>(d);
    return static_cast<int32_t>(x * q_source + mul_high(x, m_source));
  }
  // ceil(s * out / in), for s in 0 .. in
  TINYOPS_HD int32_t first(int32_t s) const {
    const uint32_t x = static_cast<uint32_t>(s);
    const uint32_t fraction = m_first != 0 && x != 0 ? mul_high(x, m_first) + 1 : 0;
    return static_cast<int32_t>(x * q_first + fraction);
  }
  TINYOPS_HD bool doubles() const { return out == 2 * static_cast<int64_t>(in); }
};

// n / divisor for 0 <= n < 2^31: the same multiplication, reading one source everywhere.
struct Divider {
  NearestAxis axis;
  explicit Divider(int64_t divisor) : axis(divisor, 1) {}
  TINYOPS_HD int32_t operator()(int32_t n) const { return axis.source(n); }
};

}  // namespace tinyops
