// The instruction sets that the CPU kernels are compiled for, chosen at run time.
#pragma once
#include <cstdint>
#include <type_traits>

namespace tinyops {

// Values are the TINYOPS_ISA definitions in CMakeLists.txt.
enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best one that this machine runs. Like torch's own kernels it obeys the environment variable
// ATEN_CPU_CAPABILITY=default|avx2|avx512, read once, so that one variable lowers both.
Isa cpu_isa();

// The best one for lines of `elements` accumulators of `size` bytes. What does not fill a vector is
// done one by one: where AVX-512 would leave half a vector or more, AVX2 is faster.
inline Isa cpu_isa_for_line(int64_t elements, int64_t size) {
  const bool leaves_half = elements % (64 / size) >= 32 / size;
  return cpu_isa() == Isa::kAvx512 && leaves_half ? Isa::kAvx2 : cpu_isa();
}

// Calls f with the instruction set as a compile-time constant; kernels are templates on it.
template <typename F>
decltype(auto) for_isa(Isa isa, const F& f) {
  (void)isa;
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx512: return f(std::integral_constant<Isa, Isa::kAvx512>{});
    case Isa::kAvx2: return f(std::integral_constant<Isa, Isa::kAvx2>{});
    case Isa::kBaseline: break;
  }
#endif
  return f(std::integral_constant<Isa, Isa::kBaseline>{});
}

}  // namespace tinyops
