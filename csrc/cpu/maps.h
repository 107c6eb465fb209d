// Limits that the CPU glue of feature operators shares.
#pragma once
#include <cstdint>

namespace tinyops {

// Outputs above this size are written past the caches: below it, the next operator finds them there
// (streaming a 1.3 MB output was seen 30 times slower than storing it).
constexpr int64_t kStreamBytes = int64_t{16} << 20;
// Elements of work below which another thread does not pay.
constexpr int64_t kGrain = 32768;

}  // namespace tinyops
