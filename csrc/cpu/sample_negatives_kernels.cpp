// The CPU kernels of sample_negatives. The scan costs a quarter of a Philox block and a comparison
// per item, no logarithm, and reads 9 bytes of it (float32).
#include "sample_negatives.h"

#include "simd.h"

namespace tinyops::sample_negatives {
namespace {

typedef uint64_t U64 __attribute__((vector_size(kVectorBytes)));
constexpr int kHalfLanes = kVectorBytes / 8;

// The products of the low halves of the lanes.
inline U64 multiply(U64 a, U64 b) {
#if TINYOPS_ISA == 2
  return bits<U64>(_mm512_mul_epu32(bits<__m512i>(a), bits<__m512i>(b)));
#elif TINYOPS_ISA == 1
  return bits<U64>(_mm256_mul_epu32(bits<__m256i>(a), bits<__m256i>(b)));
#elif defined(__x86_64__)
  return bits<U64>(_mm_mul_epu32(bits<__m128i>(a), bits<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// One block per lane, as philox::block(). A word is the low half of its lane; the high half is
// whatever the multiplication left there.
struct Blocks {
  U64 word[4];
};
inline Blocks random_blocks(uint64_t seed, U64 c0, uint64_t stream) {
  U64 c1 = U64{} + stream, c2{}, c3{};
  const U64 m0 = U64{} + philox::kMultiplier0, m1 = U64{} + philox::kMultiplier1;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < philox::kRounds; ++round) {
    const U64 p0 = multiply(m0, c0), p1 = multiply(m1, c2);
    c0 = (p1 >> 32) ^ c1 ^ uint64_t{k0};
    c2 = (p0 >> 32) ^ c3 ^ uint64_t{k1};
    c1 = p1;
    c3 = p0;
    k0 += philox::kWeyl0;
    k1 += philox::kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

inline U32 low_words(U64 a, U64 b) {
  I32 even;
  for (int k = 0; k < kLanes<float>; ++k) even[k] = 2 * k;
  return __builtin_shuffle(bits<U32>(a), bits<U32>(b), even);
}

// The upper halves of the random bits of the 64 items from `first` on.
inline void draw(uint64_t seed, int64_t first, uint32_t* high) {
  const uint64_t block = static_cast<uint64_t>(first) / kGroup * kBlocksPerGroup;
  U64 counter;
  for (int k = 0; k < kHalfLanes; ++k) counter[k] = block + k;
  for (int k = 0; k < kBlocksPerGroup; k += 2 * kHalfLanes) {
    const Blocks a = random_blocks(seed, counter + k, 0);
    const Blocks b = random_blocks(seed, counter + (k + kHalfLanes), 0);
    for (int word = 0; word < 4; ++word) {
      const U32 words = low_words(a.word[word], b.word[word]);
      std::memcpy(high + word * kBlocksPerGroup + k, &words, sizeof(words));
    }
  }
}

// Bit k: the comparison of lane k.
template <typename V>
inline uint64_t not_greater(V a, V b) {
  constexpr bool kFloat = sizeof(a[0]) == 4;
#if TINYOPS_ISA == 2
  if constexpr (kFloat)
    return _mm512_cmp_ps_mask(bits<__m512>(a), bits<__m512>(b), _CMP_NGT_UQ);
  else
    return _mm512_cmp_pd_mask(bits<__m512d>(a), bits<__m512d>(b), _CMP_NGT_UQ);
#elif TINYOPS_ISA == 1
  if constexpr (kFloat)
    return static_cast<unsigned>(
        _mm256_movemask_ps(_mm256_cmp_ps(bits<__m256>(a), bits<__m256>(b), _CMP_NGT_UQ)));
  else
    return static_cast<unsigned>(
        _mm256_movemask_pd(_mm256_cmp_pd(bits<__m256d>(a), bits<__m256d>(b), _CMP_NGT_UQ)));
#elif defined(__x86_64__)
  if constexpr (kFloat)
    return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpngt_ps(bits<__m128>(a), bits<__m128>(b))));
  else
    return static_cast<unsigned>(
        _mm_movemask_pd(_mm_cmpngt_pd(bits<__m128d>(a), bits<__m128d>(b))));
#else
  (void)kFloat;
  uint64_t mask = 0;
  for (unsigned k = 0; k < sizeof(a) / sizeof(a[0]); ++k) mask |= uint64_t{!(a[k] > b[k])} << k;
  return mask;
#endif
}

// Bit k: byte k is not zero.
inline uint64_t nonzero_bytes(const uint8_t* p) {
#if TINYOPS_ISA == 2
  const __m512i v = read<__m512i>(p);
  return _mm512_test_epi8_mask(v, v);
#else
  uint64_t mask = 0;
  for (int k = 0; k < kGroup; k += 8) {
    // Bytes are 0 or 1: the multiplication gathers their lowest bits in the topmost byte.
    const uint64_t bytes = read<uint64_t>(p + k) & 0x0101010101010101u;
    mask |= (bytes * 0x0102040810204080u) >> 56 << k;
  }
  return mask;
#endif
}

template <typename T>
inline Vector<T> log_bound(const uint32_t* high);
template <>
inline Vector<float> log_bound<float>(const uint32_t* high) {
  const I32 magnitude = bits<I32>(read<U32>(high) >> 1);
  const auto as_float = __builtin_convertvector(magnitude, Vector<float>);
  return __builtin_convertvector(bits<I32>(as_float), Vector<float>) * static_cast<float>(kLogStep);
}
template <>
inline Vector<double> log_bound<double>(const uint32_t* high) {
  typedef int32_t Half __attribute__((vector_size(kVectorBytes / 2)));
  typedef float HalfFloat __attribute__((vector_size(kVectorBytes / 2)));
  const Half magnitude = bits<Half>(read<Half>(high)) >> 1 & 0x7fffffff;
  const auto as_float = __builtin_convertvector(magnitude, HalfFloat);
  return __builtin_convertvector(bits<Half>(as_float), Vector<double>) * kLogStep;
}

struct Masks {
  uint64_t survives, not_finite;
};
template <typename T>
inline Masks compare(const T* scores, const T* overlaps, const Weights<T>& w, const uint32_t* high,
                     T bound) {
  Masks masks{0, 0};
  for (int k = 0; k < kGroup; k += kLanes<T>) {
    const auto s = read<Vector<T>>(scores + k), o = read<Vector<T>>(overlaps + k);
    const auto logit = (w.score * s + w.overlap * o) * w.sharpness;
    masks.survives |= not_greater(log_bound<T>(high + k), logit + bound) << k;
    const auto zero = (s - s) + (o - o);  // NaN unless both are finite
    masks.not_finite |= not_greater(Vector<T>{} + T(1), zero) << k;
  }
  return masks;
}

template <typename T>
Survivor* scan_group(const T* scores, const T* overlaps, const uint8_t* candidates,
                     const Weights<T>& w, uint64_t seed, int64_t first, T bound, Survivor* out,
                     int64_t* bad) {
  const uint64_t asked = nonzero_bytes(candidates);
  if (!asked) return out;
  alignas(64) uint32_t high[kGroup];
  draw(seed, first, high);
  const Masks masks = compare(scores, overlaps, w, high, bound);
  if (asked & masks.not_finite && *bad < 0) [[unlikely]]
    *bad = first + __builtin_ctzll(asked & masks.not_finite);
  for (uint64_t left = asked & masks.survives; left; left &= left - 1) {
    const int k = __builtin_ctzll(left);
    *out++ = {static_cast<uint32_t>(first + k), high[k]};
  }
  return out;
}

// ---- Arrivals: exact::log() and exact::exponential() on vectors, the same operations -----------

using D = Vector<double>;

// The lanes are integers below 2^32.
inline D small_to_double(U64 v) {
  return bits<D>(v | 0x4330000000000000u) - 0x1p52;
}
inline D to_double(U64 v) {  // both parts are exact, so it is rounded once
  return (bits<D>(v >> 32 | 0x4530000000000000u) - 0x1p84) + small_to_double(v & 0xffffffffu);
}

struct Split {
  D e, f;  // x = 2^e * (1 + f)
};
inline Split split(D x) {
  const U64 u = bits<U64>(x), e = (u + (exact::kOne - exact::kHalfRoot)) >> 52;
  return {small_to_double(e) - 1023.0, bits<D>(u - (e << 52) + exact::kOne) - 1.0};
}
inline D log(Split s) {
  return exact::add_exponent(s.e, exact::log1p_near(s.f));
}
inline D exponential(U64 r) {
  const Split far = split((to_double(~r) + 0.5) * 0x1p-64);
  const D near = (to_double(r) + 0.5) * -0x1p-64;
  const auto is_near = r < exact::kNearOne;
  return -log(Split{is_near ? D{} : far.e, is_near ? near : far.f});
}

inline U64 arrival(U64 high, U64 low, D logit) {
  const D log_time = log(split(exponential(high << 32 | low)));
  const D time = logit == logit ? log_time - logit : D{} + __builtin_huge_val();
  const U64 u = bits<U64>(time);
  const auto negative = u >> 63 != 0;
  return negative ? ~u : u | uint64_t{1} << 63;
}

}  // namespace

template <Isa isa, typename T>
void arrivals(const Items<T>& items, const Survivor* survivors, int64_t n, uint64_t* times) {
  constexpr int L = kHalfLanes;
  for (int64_t begin = 0; begin < n; begin += L) {
    U64 high{}, block{}, word{};
    D logits{};
    const int count = n - begin < L ? static_cast<int>(n - begin) : L;
    for (int k = 0; k < count; ++k) {
      const Survivor s = survivors[begin + k];
      high[k] = s.high;
      block[k] = block_of(s.item);
      word[k] = word_of(s.item);
      logits[k] = logit(items.weights, items.scores[s.item], items.overlaps[s.item]);
    }
    const Blocks random = random_blocks(items.seed, block, 1);
    const U64 low = word < 2 ? (word == 0 ? random.word[0] : random.word[1])
                             : (word == 2 ? random.word[2] : random.word[3]);
    const U64 result = arrival(high, low & 0xffffffffu, logits);
    std::memcpy(times + begin, &result, static_cast<size_t>(count) * sizeof(*times));
  }
}

template <Isa isa, typename T>
int64_t scan(const Items<T>& items, int64_t begin, int64_t end, T bound, Survivor* survivors,
             int64_t* bad) {
  Survivor* out = survivors;
  int64_t first = begin;
  for (; first + kGroup <= end; first += kGroup)
    out = scan_group(items.scores + first, items.overlaps + first, items.candidates + first,
                     items.weights, items.seed, first, bound, out, bad);
  if (first < end) {  // the last group is not full
    T scores[kGroup]{}, overlaps[kGroup]{};
    uint8_t candidates[kGroup]{};
    const auto rest = static_cast<size_t>(end - first);
    std::memcpy(scores, items.scores + first, rest * sizeof(T));
    std::memcpy(overlaps, items.overlaps + first, rest * sizeof(T));
    std::memcpy(candidates, items.candidates + first, rest);
    out =
        scan_group(scores, overlaps, candidates, items.weights, items.seed, first, bound, out, bad);
  }
  return out - survivors;
}

#define TINYOPS_INSTANTIATE(T)                                                            \
  template int64_t scan<kIsa>(const Items<T>&, int64_t, int64_t, T, Survivor*, int64_t*); \
  template void arrivals<kIsa>(const Items<T>&, const Survivor*, int64_t, uint64_t*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::sample_negatives
