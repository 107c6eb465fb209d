#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace tinyops {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const Isa best = avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kBaseline;
  if (const char* wanted = std::getenv("ATEN_CPU_CAPABILITY")) {
    const std::string_view name = wanted;
    if (name == "default") return Isa::kBaseline;
    if (name == "avx2") return std::min(best, Isa::kAvx2);
  }
  return best;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace tinyops
