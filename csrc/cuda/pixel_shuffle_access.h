// How much of a map a thread of the pixel shuffles owns, and what it does to an element.
#pragma once
#include "../ops/nearest.h"
#include "launch.h"
#include "pixel_shuffle.h"

namespace tinyops::pixel_shuffle {
namespace {

using namespace cuda;

// Elements of the upscaled map in one access: 16 bytes; 8 bytes where 9 vectors, or in NHWC 16 of
// them, would fill the registers.
template <typename T, int kUp, bool kNhwc>
constexpr int kWidth = kUp == 3 || (kNhwc && kUp == 4) ? kVec16<T> / 2 : kVec16<T>;

// NCHW: neighbours in a row of content, in each of the kUp channels that are interleaved. As few as
// make whole vectors of the upscaled row: a warp then touches full sectors on both sides, and both
// its accesses are dense runs.
template <typename T, int kUp>
constexpr int kRun = kUp == 3          ? kWidth<T, 3, false>
                     : kVec16<T> > kUp ? kVec16<T> / kUp
                                       : 1;

// NHWC, order crd, backward: channels whose sub-pixels make whole vectors of content. As few as
// possible, so that lanes write neighbouring vectors: of writes, unlike of reads, no cache makes
// whole sectors.
template <typename T, int kUp>
constexpr int kGroupSize = kUp == 3               ? kWidth<T, 3, true>
                           : kVec16<T> > kUp* kUp ? kVec16<T> / (kUp * kUp)
                                                  : 1;

// `v` where x > 0, v * slope elsewhere.
template <typename A>
__device__ __forceinline__ A leaky(A x, A v, A slope) {
  return x > A(0) ? v : v * slope;
}

// How the elements that a thread owns of one pixel of content in NHWC lie in memory.
enum class Group {
  kCrd,      // channels with their sub-pixels: one dense run
  kDcr,      // a vector of channels for every sub-pixel
  kElement,  // one channel; either order
};

// kChannels channels with their kParts sub-pixels, in vectors of N.
template <typename T, int kChannels, int kParts, int N, Group kGroup>
struct Pixel {
  static_assert(kChannels * kParts % N == 0);
  static_assert(kGroup == Group::kCrd || N == kChannels);
  static constexpr int kVectors = kChannels * kParts / N;
  Vec<T, N> v[kVectors];

  // Where vector w lies in the line of the pixel, from channel c on.
  static __device__ __forceinline__ int offset(const Problem& p, int w, int c) {
    if constexpr (kGroup == Group::kCrd) return c * kParts + w * N;
    if constexpr (kGroup == Group::kDcr) return w * static_cast<int>(p.channels) + c;
    return c * static_cast<int>(p.channel_step()) + w * static_cast<int>(p.part_step());
  }
  __device__ __forceinline__ void load_from(const Problem& p, const T* line, int c) {
#pragma unroll
    for (int w = 0; w < kVectors; ++w) v[w] = load<N>(line + offset(p, w, c));
  }
  __device__ __forceinline__ void store_to(const Problem& p, T* line, int c) const {
#pragma unroll
    for (int w = 0; w < kVectors; ++w) store<N>(line + offset(p, w, c), v[w]);
  }
  // Sub-pixel k of the e-th channel. Both are constants once loops are unrolled.
  __device__ __forceinline__ T& at(int k, int e) {
    const int i = kGroup == Group::kCrd ? e * kParts + k : k * kChannels + e;
    return v[i / N].v[i % N];
  }
};

}  // namespace
}  // namespace tinyops::pixel_shuffle
