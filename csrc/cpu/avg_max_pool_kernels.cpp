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

// As many float64 as a vector has lanes.
template <typename A>
struct DoublesOf {
  typedef double type __attribute__((vector_size(2 * kVectorBytes)));
};
template <>
struct DoublesOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};

// What the vectors of a plane have come to, lane by lane, so that lanes need not be compared with
// each other before the plane ends: the sum in float64, the maximum, and the first line of its
// chunk.
template <typename A>
struct Running {
  using Doubles = typename DoublesOf<A>::type;
  Doubles sum{};
  Vector<A> max = Vector<A>{} + kLowest<A>;
  Index<A> from{};
  // What is left over at the ends of lines.
  double single_sum = 0;
  A single_max = kLowest<A>;
  int64_t single_from = 0;

  double total() const {
    double total = single_sum;
    for (int k = 0; k < kLanes<A>; ++k) total += sum[k];
    return total;
  }
  void best(A* most, int64_t* line) const {
    *most = single_max, *line = single_from;
    for (int k = 0; k < kLanes<A>; ++k) {
      const int64_t at = from[k];
      if (max[k] > *most || (max[k] == *most && at < *line)) *most = max[k], *line = at;
    }
  }
};

// A chunk of K planes at once. One plane has the same operations in the same order for any K.
template <int K, typename T, typename A = acc_t<T>>
void pool_chunk(const T* p, int64_t plane, const Lines& lines, int64_t begin, int64_t end,
                Running<A>* running) {
  using V = Vector<A>;
  constexpr int L = kLanes<A>;
  V s[K], m[K];
  A sum[K], max[K];
  for (int k = 0; k < K; ++k) s[k] = V{}, m[k] = V{} + kLowest<A>, sum[k] = 0, max[k] = kLowest<A>;
  for (int64_t line = begin; line < end; ++line) {
    const T* row = p + line * lines.stride;
    const int64_t n = lines.length_of(line);
    int64_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
      for (int k = 0; k < K; ++k) {
        const V a = Wide<A>::load(row + k * plane + i), b = Wide<A>::load(row + k * plane + i + L);
        s[k] += a + b;
        m[k] = larger<A>(larger<A>(a, b), m[k]);
      }
    }
    for (; i < n; ++i) {
      for (int k = 0; k < K; ++k) {
        const A a = widen(row[k * plane + i]);
        sum[k] += a;
        max[k] = a > max[k] ? a : max[k];
      }
    }
  }
  for (int k = 0; k < K; ++k) {
    Running<A>& r = running[k];
    r.sum += __builtin_convertvector(s[k], typename Running<A>::Doubles);
    const Index<A> grown = m[k] > r.max;
    using I = std::remove_reference_t<decltype(r.from[0])>;
    r.from = grown ? Index<A>{} + static_cast<I>(begin) : r.from;
    r.max = grown ? m[k] : r.max;
    r.single_sum += static_cast<double>(sum[k]);
    if (max[k] > r.single_max) r.single_max = max[k], r.single_from = begin;
  }
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

template <typename T, typename A = acc_t<T>>
void end_plane(const Problem& p, const ForwardArgs<T>& a, int64_t plane, Extent e,
               const Lines& lines, const Running<A>& running) {
  const T* features = a.features + plane * p.plane();
  const double sum = running.total();
  A max;
  int64_t from;  // the first line of the chunk that has the maximum
  running.best(&max, &from);
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

// K planes of an image, read side by side: a core fetches several streams faster than one.
template <int K, typename T>
void pool_side_by_side(const Problem& p, const ForwardArgs<T>& a, int64_t plane, Extent e) {
  if (e.cells() == 0) {
    for (int k = 0; k < K; ++k) write_nothing(a, plane + k);
    return;
  }
  const Lines lines = lines_of(p, e);
  Running<acc_t<T>> running[K];
  for (int64_t line = 0; line < lines.count; line += lines.per_chunk) {
    const int64_t end = line + lines.per_chunk;
    pool_chunk<K>(a.features + plane * p.plane(), p.plane(), lines, line,
                  end < lines.count ? end : lines.count, running);
  }
  for (int k = 0; k < K; ++k) end_plane(p, a, plane + k, e, lines, running[k]);
}

// ---- NHWC ---------------------------------------------------------------------------------------

template <typename A>
void put_place(Wide<A>, Index<A> grown, int32_t place, int32_t* p) {
  typedef int32_t Few __attribute__((vector_size(kLanes<A> * 4)));
  Few v;  // not read<Few>: a template argument loses the attribute
  std::memcpy(&v, p, sizeof(v));
  v = __builtin_convertvector(grown, Few) ? Few{} + place : v;
  std::memcpy(p, &v, sizeof(v));
}
template <typename A>
void put_place(Single<A>, bool grown, int32_t place, int32_t* p) {
  if (grown) *p = place;
}

// What has been found of each channel of a unit, and of the group of cells in hand.
template <typename A>
struct Channels {
  A *sum, *max;
  int32_t* first;
  A *group_sum, *group_max;
};

// Adds a group of n cells, one after the other: read in the order in which it lies, memory is more
// than twice as fast as in strides. Sums and maxima stay in the cache meanwhile.
template <typename T, typename A>
void pool_group(const T* p, int64_t n, int64_t channels, int32_t group, const Channels<A>& to) {
  for_lanes<A>(channels, [&](auto lanes, int64_t c) {
    const auto v = lanes.load(p + c);
    lanes.store(to.group_sum + c, v);
    lanes.store(to.group_max + c, v);
  });
  for (int64_t i = 1; i < n; ++i) {
    p += channels;
    for_lanes<A>(channels, [&](auto lanes, int64_t c) {
      const auto v = lanes.load(p + c), m = lanes.load(to.group_max + c);
      lanes.store(to.group_sum + c, lanes.load(to.group_sum + c) + v);
      lanes.store(to.group_max + c, v > m ? v : m);
    });
  }
  for_lanes<A>(channels, [&](auto lanes, int64_t c) {
    const auto m = lanes.load(to.group_max + c), old = lanes.load(to.max + c);
    const auto grown = m > old;
    lanes.store(to.sum + c, lanes.load(to.sum + c) + lanes.load(to.group_sum + c));
    lanes.store(to.max + c, grown ? m : old);
    put_place(lanes, grown, group, to.first + c);
  });
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

constexpr int64_t kTile = 64;  // channels whose parts are joined together, as they lie in memory

template <typename T, typename A>
void join_tile(const Problem& p, const Parts& parts, const ForwardArgs<T>& a,
               const Partials<A>& partials, int64_t image, int64_t channel, int64_t channels) {
  const Extent e = p.extent(a.valid, image);
  const int64_t first_plane = image * p.channels + channel;
  if (e.cells() == 0) {
    for (int64_t c = 0; c < channels; ++c) write_nothing(a, first_plane + c);
    return;
  }
  double sum[kTile];
  A max[kTile];
  int64_t from[kTile];  // the first cell of the group that has the maximum
  for (int64_t c = 0; c < channels; ++c) sum[c] = 0, max[c] = kLowest<A>, from[c] = 0;
  const int64_t used = ceil_div(e.cells(), parts.cells);
  for (int64_t part = 0; part < used; ++part) {
    const int64_t at = (image * parts.per_image + part) * p.channels + channel;
    for (int64_t c = 0; c < channels; ++c) {
      sum[c] += static_cast<double>(partials.sum[at + c]);
      const bool grown = partials.max[at + c] > max[c];
      max[c] = grown ? partials.max[at + c] : max[c];
      from[c] = grown ? part * parts.cells + partials.first[at + c] : from[c];
    }
  }
  const Walk walk(p, e);
  const T* features = a.features + image * p.plane() * p.channels + channel;
  const auto element = [&](int64_t k, int64_t c) {
    return features + walk.cell(k) * p.channels + c;
  };
  for (int64_t c = 0; c < channels; ++c)  // all at once: they are far apart
    for (int64_t k = from[c]; k < least(from[c] + kGroupCells, e.cells()); ++k)
      __builtin_prefetch(element(k, c));
  for (int64_t c = 0; c < channels; ++c) {
    int64_t found = -1;
    for (int64_t k = 0; sum[c] != sum[c] && found < 0 && k < e.cells(); ++k) {
      const A v = widen(*element(k, c));
      if (v != v) found = k;
    }
    for (int64_t k = from[c]; found < 0; ++k)  // no NaN, though inf - inf may be one
      if (widen(*element(k, c)) == max[c]) found = k;
    write_result(a, first_plane + c, sum[c], e.cells(), *element(found, c), walk.cell(found));
  }
}

}  // namespace

template <Isa isa, typename T>
void pool_planes(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end;) {
    const Extent e = p.extent(a.valid, plane / p.channels);
    const int64_t left = least(end - plane, p.channels - plane % p.channels);  // of this image
    if (left >= 4) {
      pool_side_by_side<4>(p, a, plane, e);
      plane += 4;
    } else {
      pool_side_by_side<1>(p, a, plane, e);
      ++plane;
    }
  }
}

template <Isa isa, typename T>
void pool_parts(const Problem& p, const Parts& parts, const ForwardArgs<T>& a,
                const Partials<acc_t<T>>& partials, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / parts.per_image, start = unit % parts.per_image * parts.cells;
    const Extent e = p.extent(a.valid, image);
    const int64_t stop = least(start + parts.cells, e.cells()), at = unit * p.channels;
    const Channels<A> to{partials.sum + at, partials.max + at, partials.first + at, scratch,
                         scratch + p.channels};
    for (int64_t c = 0; c < p.channels; ++c) to.sum[c] = 0, to.max[c] = kLowest<A>, to.first[c] = 0;
    if (start >= stop) continue;
    const Walk walk(p, e);
    const T* features = a.features + image * p.plane() * p.channels;
    for (int64_t k = start; k < stop;) {
      const int64_t n = least(least(kGroupCells, stop - k), walk.run(k));
      pool_group(features + walk.cell(k) * p.channels, n, p.channels,
                 static_cast<int32_t>(k - start), to);
      k += n;
    }
  }
}

template <Isa isa, typename T>
void join_parts(const Problem& p, const Parts& parts, const ForwardArgs<T>& a,
                const Partials<acc_t<T>>& partials, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end;) {
    const int64_t image = plane / p.channels, c = plane % p.channels;
    const int64_t n = least(kTile, least(end - plane, p.channels - c));
    join_tile(p, parts, a, partials, image, c, n);
    plane += n;
  }
}

#define TINYOPS_INSTANTIATE(T)                                                                 \
  template void pool_planes<kIsa, T>(const Problem&, const ForwardArgs<T>&, int64_t, int64_t); \
  template void pool_parts<kIsa, T>(const Problem&, const Parts&, const ForwardArgs<T>&,       \
                                    const Partials<acc_t<T>>&, int64_t, int64_t, acc_t<T>*);   \
  template void join_parts<kIsa, T>(const Problem&, const Parts&, const ForwardArgs<T>&,       \
                                    const Partials<acc_t<T>>&, int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::avg_max_pool
