// The forward of avg_max_pool on the CPU. Memory-bound: features move once. The loops look for the
// maximum only; where it is comes from looking again at the few cells that had it, and whether a
// NaN is among them from the sum, which is then NaN too.
#include "avg_max_pool.h"
#include "simd.h"

namespace tinyops::avg_max_pool {
namespace {

template <typename A>
constexpr A kLowest = -static_cast<A>(__builtin_inf());

// The first of n elements that equals x, or is NaN for a NaN; n if none does.
template <typename T>
int64_t find(const T* p, int64_t n, acc_t<T> x) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = 8 * kLanes<A>;
  int64_t i = 0;
  for (; x == x && i + kBlock <= n; i += kBlock) {
    Index<A> hit{};
    for (int64_t k = 0; k < kBlock; k += kLanes<A>) hit |= Wide<A>::load(p + i + k) == x;
    int64_t words[kVectorBytes / 8], any = 0;
    std::memcpy(words, &hit, sizeof(hit));
    for (const int64_t word : words) any |= word;
    if (any) break;
  }
  for (; i < n; ++i) {
    const A v = widen(p[i]);
    if (v == x || (x != x && v != v)) return i;
  }
  return n;
}

template <typename A>
Vector<A> larger(Vector<A> v, Vector<A> m) {
  return v > m ? v : m;
}
template <typename A>
A largest(Vector<A> v) {
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int w = kLanes<A> / 2; w > 0; w /= 2)
    for (int k = 0; k < w; ++k) lanes[k] = lanes[k + w] > lanes[k] ? lanes[k + w] : lanes[k];
  return lanes[0];
}

// ---- NCHW ---------------------------------------------------------------------------------------

// A plane as lines of `length` cells, `stride` apart, and chunks of some lines. Where whole rows
// count, lines are cut without regard to rows.
struct Lines {
  int64_t count, length, stride, last;  // last: the length of the last line
  int64_t per_chunk;

  int64_t length_of(int64_t line) const { return line + 1 < count ? length : last; }
};
constexpr int64_t kChunk = 2048;  // cells: few enough to be looked at twice

Lines lines_of(const Problem& p, Extent e) {
  if (e.columns < p.width)
    return {e.rows, e.columns, p.width, e.columns, kChunk / e.columns > 1 ? kChunk / e.columns : 1};
  const int64_t count = ceil_div(e.cells(), kChunk);
  return {count, kChunk, kChunk, e.cells() - (count - 1) * kChunk, 1};
}

template <typename A>
struct Chunk {
  A sum, max;
};

template <typename T, typename A = acc_t<T>>
Chunk<A> pool_chunk(const T* p, const Lines& lines, int64_t begin, int64_t end) {
  using V = Vector<A>;
  constexpr int L = kLanes<A>;
  V s0{}, s1{}, s2{}, s3{}, m0 = V{} + kLowest<A>, m1 = m0, m2 = m0, m3 = m0;
  A sum = 0, max = kLowest<A>;
  for (int64_t line = begin; line < end; ++line) {
    const T* row = p + line * lines.stride;
    const int64_t n = lines.length_of(line);
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
      const V a = Wide<A>::load(row + i), b = Wide<A>::load(row + i + L),
              c = Wide<A>::load(row + i + 2 * L), d = Wide<A>::load(row + i + 3 * L);
      s0 += a, s1 += b, s2 += c, s3 += d;
      m0 = larger<A>(a, m0), m1 = larger<A>(b, m1), m2 = larger<A>(c, m2), m3 = larger<A>(d, m3);
    }
    for (; i + L <= n; i += L) {
      const V a = Wide<A>::load(row + i);
      s0 += a, m0 = larger<A>(a, m0);
    }
    for (; i < n; ++i) {
      const A a = widen(row[i]);
      sum += a;
      max = a > max ? a : max;
    }
  }
  sum += tinyops::sum<A>((s0 + s1) + (s2 + s3));
  const A wide = largest<A>(larger<A>(larger<A>(m0, m1), larger<A>(m2, m3)));
  return {sum, wide > max ? wide : max};
}

// Mean, maximum and index of one plane, of which `e` counts.
template <typename T>
void write_result(const ForwardArgs<T>& a, int64_t plane, double sum, int64_t cells, T max,
                  int64_t index) {
  a.mean[plane] = narrow<T>(static_cast<acc_t<T>>(sum / static_cast<double>(cells)));
  a.max[plane] = max;
  a.index[plane] = index;
}
template <typename T>
void write_nothing(const ForwardArgs<T>& a, int64_t plane) {
  a.mean[plane] = a.max[plane] = narrow<T>(0);
  a.index[plane] = -1;
}

template <typename T>
void pool_plane(const Problem& p, const ForwardArgs<T>& a, int64_t plane, Extent e) {
  using A = acc_t<T>;
  if (e.cells() == 0) return write_nothing(a, plane);
  const T* features = a.features + plane * p.plane();
  const Lines lines = lines_of(p, e);
  double sum = 0;
  A max = kLowest<A>;
  int64_t from = 0;  // the first line of the chunk that has the maximum
  for (int64_t line = 0; line < lines.count; line += lines.per_chunk) {
    const int64_t end = line + lines.per_chunk;
    const Chunk<A> chunk = pool_chunk(features, lines, line, end < lines.count ? end : lines.count);
    sum += static_cast<double>(chunk.sum);
    if (chunk.max > max) max = chunk.max, from = line;
  }
  const auto find_from = [&](int64_t line, A x) {
    for (; line < lines.count; ++line) {
      const int64_t n = lines.length_of(line), i = find(features + line * lines.stride, n, x);
      if (i < n) return line * lines.stride + i;
    }
    return int64_t{-1};
  };
  int64_t index = sum == sum ? -1 : find_from(0, static_cast<A>(__builtin_nan("")));
  if (index < 0) index = find_from(from, max);  // no NaN, though inf - inf may be one
  write_result(a, plane, sum, e.cells(), features[index], index);
}

// ---- NHWC ---------------------------------------------------------------------------------------

// `n` cells of a vector of channels, in four accumulators: sums from zero, maxima from `max`.
template <int kVectors, typename T, typename A>
void pool_group(const T* p, int64_t n, int64_t channels, int32_t group, A* sum, A* max,
                int32_t* first) {
  using V = Vector<A>;
  constexpr int L = kLanes<A>;
  const V lowest = V{} + kLowest<A>;
  V s0{}, s1{}, s2{}, s3{}, m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
  for (int64_t i = 0; i < n; ++i, p += channels) {
    const auto one = [&](V& s, V& m, int k) {
      const V v = Wide<A>::load(p + k * L);
      s += v, m = larger<A>(v, m);
    };
    one(s0, m0, 0);
    if constexpr (kVectors > 1) one(s1, m1, 1);
    if constexpr (kVectors > 2) one(s2, m2, 2);
    if constexpr (kVectors > 3) one(s3, m3, 3);
  }
  const auto put = [&](V s, V m, int k) {
    const V old = read<V>(max + k * L), total = read<V>(sum + k * L) + s, best = larger<A>(m, old);
    std::memcpy(sum + k * L, &total, sizeof(total));
    std::memcpy(max + k * L, &best, sizeof(best));
    const Index<A> grown = m > old;
    typedef int32_t Few __attribute__((vector_size(L * 4)));
    const Few changed = __builtin_convertvector(grown, Few);
    Few place;  // not read<Few>: a template argument loses the attribute
    std::memcpy(&place, first + k * L, sizeof(place));
    place = changed ? Few{} + group : place;
    std::memcpy(first + k * L, &place, sizeof(place));
  };
  put(s0, m0, 0);
  if constexpr (kVectors > 1) put(s1, m1, 1);
  if constexpr (kVectors > 2) put(s2, m2, 2);
  if constexpr (kVectors > 3) put(s3, m3, 3);
}

template <typename T, typename A>
void pool_group_channels(const T* p, int64_t n, int64_t channels, int32_t group, A* sum, A* max,
                         int32_t* first) {
  constexpr int L = kLanes<A>;
  int64_t c = 0;
  for (; c + 4 * L <= channels; c += 4 * L)
    pool_group<4>(p + c, n, channels, group, sum + c, max + c, first + c);
  for (; c + L <= channels; c += L)
    pool_group<1>(p + c, n, channels, group, sum + c, max + c, first + c);
  for (; c < channels; ++c) {
    A s = 0, m = max[c];
    for (int64_t i = 0; i < n; ++i) {
      const A v = widen(p[i * channels + c]);
      s += v;
      if (v > m) m = v, first[c] = group;
    }
    sum[c] += s;
    max[c] = m;
  }
}

// The cells of an image that count, one after another: in one run where whole rows do.
struct Walk {
  int64_t columns, width;

  Walk(const Problem& p, Extent e)
      : columns(e.columns < p.width ? e.columns : e.cells()),
        width(e.columns < p.width ? p.width : e.cells()) {}
  int64_t cell(int64_t k) const { return k / columns * width + k % columns; }
  // How many cells from k on lie side by side.
  int64_t run(int64_t k) const { return columns - k % columns; }
};

int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

}  // namespace

template <Isa isa, typename T>
void pool_planes(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane)
    pool_plane(p, a, plane, p.extent(a.valid, plane / p.channels));
}

template <Isa isa, typename T>
void pool_parts(const Problem& p, const Parts& parts, const ForwardArgs<T>& a,
                const Partials<acc_t<T>>& partials, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / parts.per_image, start = unit % parts.per_image * parts.cells;
    const Extent e = p.extent(a.valid, image);
    const int64_t stop = least(start + parts.cells, e.cells()), at = unit * p.channels;
    A *sum = partials.sum + at, *max = partials.max + at;
    int32_t* first = partials.first + at;
    for (int64_t c = 0; c < p.channels; ++c) sum[c] = 0, max[c] = kLowest<A>, first[c] = 0;
    if (start >= stop) continue;
    const Walk walk(p, e);
    const T* features = a.features + image * p.plane() * p.channels;
    for (int64_t k = start; k < stop;) {
      const int64_t n = least(least(kGroupCells, stop - k), walk.run(k));
      pool_group_channels(features + walk.cell(k) * p.channels, n, p.channels,
                          static_cast<int32_t>(k - start), sum, max, first);
      k += n;
    }
  }
}

template <Isa isa, typename T>
void join_parts(const Problem& p, const Parts& parts, const ForwardArgs<T>& a,
                const Partials<acc_t<T>>& partials, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / p.channels, c = plane % p.channels;
    const Extent e = p.extent(a.valid, image);
    if (e.cells() == 0) {
      write_nothing(a, plane);
      continue;
    }
    const int64_t used = ceil_div(e.cells(), parts.cells);
    double sum = 0;
    A max = kLowest<A>;
    int64_t from = 0;  // where the group of cells begins that has the maximum
    for (int64_t part = 0; part < used; ++part) {
      const int64_t at = (image * parts.per_image + part) * p.channels + c;
      sum += static_cast<double>(partials.sum[at]);
      if (part == 0 || partials.max[at] > max)
        max = partials.max[at], from = part * parts.cells + partials.first[at];
    }
    const Walk walk(p, e);
    const T* features = a.features + image * p.plane() * p.channels + c;
    int64_t found = -1;
    for (int64_t k = 0; sum != sum && found < 0 && k < e.cells(); ++k) {
      const A v = widen(features[walk.cell(k) * p.channels]);
      if (v != v) found = k;
    }
    for (int64_t k = from; found < 0; ++k)  // no NaN, though inf - inf may be one
      if (widen(features[walk.cell(k) * p.channels]) == max) found = k;
    const int64_t index = walk.cell(found);
    // walk.cell() is the cell in the map where the rows are whole, too.
    write_result(a, plane, sum, e.cells(), features[index * p.channels], index);
  }
}

#define TINYOPS_INSTANTIATE(T)                                                                 \
  template void pool_planes<kIsa, T>(const Problem&, const ForwardArgs<T>&, int64_t, int64_t); \
  template void pool_parts<kIsa, T>(const Problem&, const Parts&, const ForwardArgs<T>&,       \
                                    const Partials<acc_t<T>>&, int64_t, int64_t);              \
  template void join_parts<kIsa, T>(const Problem&, const Parts&, const ForwardArgs<T>&,       \
                                    const Partials<acc_t<T>>&, int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::avg_max_pool
