// What the forward and the backward of the pixel shuffle share on the CPU.
#pragma once
#include "interleave.h"
#include "pixel_shuffle.h"

namespace tinyops::pixel_shuffle {
namespace {

// Calls f with the factor as a compile-time constant: 2, 3 or 4.
template <typename F>
inline void for_upscale(int upscale, const F& f) {
  if (upscale == 2) return f(std::integral_constant<int, 2>{});
  if (upscale == 3) return f(std::integral_constant<int, 3>{});
  f(std::integral_constant<int, 4>{});
}

// `v` where x > 0, v * slope elsewhere, as in torch also where x is NaN; of vectors and of
// elements.
template <typename A, typename V>
inline V leaky(V x, V v, A slope) {
  return x > A(0) ? v : v * slope;
}

// Streaming stores need every vector aligned: lines of whole vectors from an aligned start.
template <typename T>
inline bool lines_are_vectors(int64_t elements, const T* start) {
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  return elements * int64_t{sizeof(T)} % kBytes == 0 &&
         reinterpret_cast<uintptr_t>(start) % kBytes == 0;
}

}  // namespace
}  // namespace tinyops::pixel_shuffle
