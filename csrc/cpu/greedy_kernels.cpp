#include "greedy_kernels.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinyops::greedy {
namespace {

constexpr Isa kIsa = static_cast<Isa>(TINYOPS_ISA);
constexpr int kBlock = 64;  // boxes that are prepared together
constexpr int kAhead = 4;   // boxes by which buckets are fetched ahead

// Eight lanes, whatever the machine has; GCC splits what is wider than that.
template <typename T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kBucketBoxes * sizeof(T))));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;
template <typename T>
using Mask = decltype(Lanes<T>{} < Lanes<T>{});

TINYOPS_HD bool any(Mask<float> m) {
#if defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) != 0;
#else
  int64_t v[4];
  memcpy(v, &m, sizeof(m));
  return (v[0] | v[1] | v[2] | v[3]) != 0;
#endif
}
TINYOPS_HD bool any(Mask<double> m) {
  int64_t v[8];
  memcpy(v, &m, sizeof(m));
  return (v[0] | v[1] | v[2] | v[3] | v[4] | v[5] | v[6] | v[7]) != 0;
}

TINYOPS_HD Lanes<float> lanes_min(Lanes<float> a, Lanes<float> b) {
#if defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
TINYOPS_HD Lanes<float> lanes_max(Lanes<float> a, Lanes<float> b) {
#if defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
TINYOPS_HD Lanes<double> lanes_min(Lanes<double> a, Lanes<double> b) {
  return a < b ? a : b;
}
TINYOPS_HD Lanes<double> lanes_max(Lanes<double> a, Lanes<double> b) {
  return a > b ? a : b;
}

template <typename T>
TINYOPS_HD Lanes<T> load(const T* p) {
  return *reinterpret_cast<const Lanes<T>*>(p);
}

template <typename T>
TINYOPS_HD T centre(T low, T high) {
  return low * T(0.5) + high * T(0.5);
}

// The box that is being decided.
template <typename T>
struct Candidate {
  Box<T> box;
  T width, height;
  int32_t tile;
  bool truncated;

  TINYOPS_HD T x() const { return centre(box.x1, box.x2); }
  TINYOPS_HD T y() const { return centre(box.y1, box.y2); }
  TINYOPS_HD T x_slack() const { return slack_of(box.x1, box.x2); }
  TINYOPS_HD T y_slack() const { return slack_of(box.y1, box.y2); }
  TINYOPS_HD T x_extent() const { return extent_of(width, x_slack()); }
  TINYOPS_HD T y_extent() const { return extent_of(height, y_slack()); }
};

// Exact, and without a division unless a box is about to go: what is clearly below the threshold is
// sorted out by a product, whose rounding the factor allows for.
template <typename T>
constexpr T kBelow = T(1) - T(16) * (sizeof(T) == 8 ? T(0x1p-52) : T(0x1p-23));

template <Rule rule, bool legacy, typename T>
TINYOPS_HD bool suppresses(const Run<T>& run, uint32_t bucket, const Candidate<T>& c) {
  const Bucket<T>& b = run.buckets[bucket];
  const Lanes<T> x1 = load(b.x1), y1 = load(b.y1), x2 = load(b.x2), y2 = load(b.y2), zero = {};
  const Lanes<T> cx1 = zero + c.box.x1, cy1 = zero + c.box.y1, cx2 = zero + c.box.x2,
                 cy2 = zero + c.box.y2;
  Lanes<T> width = lanes_min(x2, cx2) - lanes_max(x1, cx1);
  Lanes<T> height = lanes_min(y2, cy2) - lanes_max(y1, cy1);
  Lanes<T> own_width = x2 - x1, own_height = y2 - y1;
  if constexpr (legacy) {
    width += T(1);
    height += T(1);
    own_width += T(1);
    own_height += T(1);
  }
  const Lanes<T> inter = lanes_max(width, zero) * lanes_max(height, zero);
  const Lanes<T> area = own_width * own_height;
  Mask<T> maybe = inter > zero;
  if constexpr (rule == Rule::kStitch) {
    const auto tiles = *reinterpret_cast<const Lanes<int32_t>*>(run.bucket_tiles[bucket].tile);
    const Lanes<int32_t> differ = tiles != c.tile;
    if constexpr (sizeof(T) == 4)
      maybe &= differ;
    else
      maybe &= __builtin_convertvector(differ, Mask<T>);
  }
  if constexpr (rule == Rule::kIos) {
    const Lanes<T> least = lanes_min(area, zero + c.width * c.height);
    maybe &= inter >= least * (run.threshold * kBelow<T>);
    if (!any(maybe)) return false;
    return any(maybe & (inter / least > run.threshold));
  } else {
    const Lanes<T> both = (area + c.width * c.height) - inter;
    const Mask<T> close = inter >= both * (run.threshold * kBelow<T>);
    if (rule == Rule::kStitch && c.truncated) {
      const Lanes<T> least = lanes_min(area, zero + c.width * c.height);
      const Mask<T> inside = inter >= least * (run.ios_threshold * kBelow<T>);
      if (!any(maybe & (close | inside))) return false;
      return any(maybe & ((inter / both > run.threshold) | (inter / least > run.ios_threshold)));
    }
    maybe &= close;
    if (!any(maybe)) return false;
    return any(maybe & (inter / both > run.threshold));
  }
}

// ---- Cells --------------------------------------------------------------------------------------

// Rises with x, whatever x is; NaN is in cell 0.
template <typename T>
TINYOPS_HD int32_t cell(const Axis<T>& axis, int level, T x) {
  const T f = (x - axis.origin) * axis.inverse[level];
  const T low = f > T(0) ? f : T(0);
  return static_cast<int32_t>(low < axis.last[level] ? low : axis.last[level]);
}

template <typename T>
TINYOPS_HD int level_of(const Axis<T>& axis, T size) {
  int level = 0;
  while (level < axis.levels - 1 && size > axis.size[level]) ++level;
  return level;
}
// Of the largest box that one of this extent can meet; the factor allows for rounding.
template <typename T>
TINYOPS_HD int top_level_of(const Run<T>& run, const Axis<T>& axis, T extent) {
  return axis.levels == 1 ? 0 : level_of(axis, extent / run.threshold * T(1.001));
}

template <typename T>
TINYOPS_HD uint32_t slot_of(const Run<T>& run, const Table& table, int32_t i, int32_t j) {
  return (static_cast<uint32_t>(i) * table.x + static_cast<uint32_t>(j) * table.y + table.add) >>
         run.shift;
}

// How far from the centre of a kept box of this size the centre of a box can lie that it
// suppresses, among those that meet it in `level`.
template <typename T>
TINYOPS_HD T reach(const Run<T>& run, const Axis<T>& axis, int level, T size, T slack) {
  const T t = run.threshold;
  const T most = smaller(axis.size[level], size / t * T(1.001));  // of the other box
  const T other = most < size || t < T(0.5) ? most : size;
  const T r = (size + other) * T(0.5) - t * larger(size, other);
  return r * T(1.0001) + size * T(1e-5) + slack;
}

// ---- Looking for and entering boxes
// ---------------------------------------------------------------

template <Rule rule, bool legacy, typename T>
TINYOPS_HD bool any_in_slot(Run<T>& run, uint32_t slot, const Candidate<T>& c) {
  uint32_t bucket = run.heads[slot] >> 4;
  do {
    ++run.compared;
    if (suppresses<rule, legacy>(run, bucket, c)) return true;
    bucket = run.next[bucket];
  } while (bucket);
  return false;
}

// One cell of each grid from the box's own levels upwards.
template <Rule rule, bool legacy, typename T>
bool any_above(Run<T>& run, const Candidate<T>& c) {
  const T width = c.x_extent(), height = c.y_extent();
  const int a0 = level_of(run.x, width), a1 = top_level_of(run, run.x, width);
  const int b0 = level_of(run.y, height), b1 = top_level_of(run, run.y, height);
  for (int b = b0; b <= b1; ++b) {
    for (int a = a0; a <= a1; ++a) {
      const Table& table = run.tables[b * kMostLevels + a];
      if (!table.entries) continue;
      const uint32_t slot = slot_of(run, table, cell(run.x, a, c.x()), cell(run.y, b, c.y()));
      if (any_in_slot<rule, legacy>(run, slot, c)) return true;
    }
  }
  return false;
}

// All cells of all grids in which a box that overlaps can have its centre.
template <Rule rule, bool legacy, typename T>
bool any_around(Run<T>& run, const Candidate<T>& c) {
  for (int b = 0; b < run.y.levels; ++b) {
    const T ry = (c.height + run.y.size[b]) * T(0.5001) + c.y_slack();
    const int32_t j0 = cell(run.y, b, c.y() - ry), j1 = cell(run.y, b, c.y() + ry);
    for (int a = 0; a < run.x.levels; ++a) {
      const Table& table = run.tables[b * kMostLevels + a];
      if (!table.entries) continue;
      const T rx = (c.width + run.x.size[a]) * T(0.5001) + c.x_slack();
      const int32_t i0 = cell(run.x, a, c.x() - rx), i1 = cell(run.x, a, c.x() + rx);
      if (int64_t{i1 - i0 + 1} * (j1 - j0 + 1) > run.used) {  // then rather all there are
        for (uint32_t bucket = 1; bucket < run.used; ++bucket) {
          ++run.compared;
          if (suppresses<rule, legacy>(run, bucket, c)) return true;
        }
        return false;
      }
      for (int32_t j = j0; j <= j1; ++j)
        for (int32_t i = i0; i <= i1; ++i)
          if (any_in_slot<rule, legacy>(run, slot_of(run, table, i, j), c)) return true;
    }
  }
  return false;
}

template <Rule rule, typename T>
TINYOPS_HD void enter_cell(Run<T>& run, uint32_t slot, const Candidate<T>& c) {
  uint32_t head = run.heads[slot];
  if (head == 0 || (head & 15) == kBucketBoxes) {
    const uint32_t fresh = run.used++;
    run.next[fresh] = head >> 4;
    // Empty places overlap nothing: their right side is left of their left side.
    constexpr T kFar = sizeof(T) == 8 ? T(0x1p1000) : T(0x1p120);
    Bucket<T>& b = run.buckets[fresh];
    for (int k = 0; k < kBucketBoxes; ++k) {
      b.x1[k] = b.y1[k] = kFar;
      b.x2[k] = b.y2[k] = -kFar;
    }
    head = fresh << 4;
  }
  const uint32_t bucket = head >> 4, place = head & 15;
  Bucket<T>& b = run.buckets[bucket];
  b.x1[place] = c.box.x1;
  b.y1[place] = c.box.y1;
  b.x2[place] = c.box.x2;
  b.y2[place] = c.box.y2;
  if constexpr (rule == Rule::kStitch) run.bucket_tiles[bucket].tile[place] = c.tile;
  run.heads[slot] = head + 1;
}

struct Window {
  int32_t table, i0, i1, j0, j1;
};

template <typename T>
TINYOPS_HD Window window_of(const Run<T>& run, int a, int b, const Candidate<T>& c) {
  const T rx = run.around ? T(0) : reach(run, run.x, a, c.width, c.x_slack());
  const T ry = run.around ? T(0) : reach(run, run.y, b, c.height, c.y_slack());
  return {b * kMostLevels + a, cell(run.x, a, c.x() - rx), cell(run.x, a, c.x() + rx),
          cell(run.y, b, c.y() - ry), cell(run.y, b, c.y() + ry)};
}

// Enters a kept box wherever it will be looked for; false, with nothing done, if the buckets may
// not do for that.
template <Rule rule, typename T>
TINYOPS_HD bool enter(Run<T>& run, const Candidate<T>& c) {
  Window windows[kMostLevels * kMostLevels];
  int count = 0;
  if (run.x.levels == 1 && run.y.levels == 1) {
    windows[count++] = window_of(run, 0, 0, c);
  } else {
    const T width = c.x_extent(), height = c.y_extent();
    const int a0 = level_of(run.x, width), b0 = level_of(run.y, height);
    const int a1 = run.around ? a0 : top_level_of(run, run.x, width);
    const int b1 = run.around ? b0 : top_level_of(run, run.y, height);
    for (int b = b0; b <= b1; ++b)
      for (int a = a0; a <= a1; ++a) windows[count++] = window_of(run, a, b, c);
  }
  int64_t cells = 0;
  for (int k = 0; k < count; ++k)
    cells += int64_t{windows[k].i1 - windows[k].i0 + 1} * (windows[k].j1 - windows[k].j0 + 1);
  if (cells > run.capacity - run.used) return false;
  for (int k = 0; k < count; ++k) {
    const Window& w = windows[k];
    Table& table = run.tables[w.table];
    table.entries = 1;
    for (int32_t j = w.j0; j <= w.j1; ++j)
      for (int32_t i = w.i0; i <= w.i1; ++i) enter_cell<rule>(run, slot_of(run, table, i, j), c);
  }
  return true;
}

// ---- The loop -----------------------------------------------------------------------------------

template <Rule rule, bool legacy, typename T>
TINYOPS_HD Candidate<T> candidate(const Run<T>& run, const Box<T>& box, int32_t index) {
  const T offset = legacy ? T(1) : T(0);
  Candidate<T> c{box, box.x2 - box.x1 + offset, box.y2 - box.y1 + offset, 0, false};
  if constexpr (rule == Rule::kStitch) {
    c.tile = run.tiles[index];
    c.truncated = run.truncated[index] != 0;
  }
  return c;
}

template <Rule rule, bool legacy, typename T>
void advance_as(Run<T>& run) {
  Box<T> block[kBlock];
  uint32_t slots[kBlock + kAhead];
  const bool flat = run.x.levels == 1 && run.y.levels == 1;
  while (run.position < run.n && run.kept < run.most) {
    const int count = static_cast<int>(smaller<int64_t>(kBlock, run.n - run.position));
    const int32_t* order = run.order + run.position;
    for (int k = 0; k < count; ++k) {
      const Box<T> b = block[k] = run.boxes[order[k]];
      const int32_t i = cell(run.x, 0, centre(b.x1, b.x2)), j = cell(run.y, 0, centre(b.y1, b.y2));
      slots[k] = slot_of(run, run.tables[0], i, j);
      __builtin_prefetch(run.heads + slots[k]);
    }
    for (int k = 0; k < kAhead; ++k) slots[count + k] = slots[0];
    for (int k = 0; k < count; ++k) {
      const auto* ahead =
          reinterpret_cast<const char*>(run.buckets + (run.heads[slots[k + kAhead]] >> 4));
      for (size_t line = 0; line < sizeof(Bucket<T>); line += 64) __builtin_prefetch(ahead + line);
      const auto c = candidate<rule, legacy>(run, block[k], order[k]);
      const bool around = run.around || (rule == Rule::kStitch && c.truncated);
      const bool goes = around ? any_around<rule, legacy>(run, c)
                        : flat ? any_in_slot<rule, legacy>(run, slots[k], c)
                               : any_above<rule, legacy>(run, c);
      if (goes) continue;
      if (!enter<rule>(run, c)) {  // to be decided again, with more buckets
        run.position += k;
        return;
      }
      run.keep[run.kept++] = order[k];
      if (run.kept == run.most) return;
    }
    run.position += count;
  }
}

}  // namespace

template <Isa isa, typename T>
Extremes<T> extremes(const Box<T>* boxes, const int32_t* order, int64_t n) {
  // A box is one vector: x1 y1 x2 y2.
  typedef T Row __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T))));
  using Places = decltype(Row{} < Row{});
  const auto row = [&](int64_t k) {
    return *reinterpret_cast<const Row*>(boxes + (order ? order[k] : k));
  };
  Row low = row(0), high = low, size = {};
  for (int64_t k = 0; k < n; ++k) {
    const Row r = row(k);
    const Row d = r - __builtin_shuffle(r, Places{0, 1, 0, 1});
    low = r < low ? r : low;
    high = r > high ? r : high;
    size = d > size ? d : size;
  }
  return {low[0], low[1], high[2], high[3], size[2], size[3]};
}

template <Isa isa, typename T>
void advance(Run<T>& run) {
  const bool legacy = run.legacy;
  switch (run.rule) {
    case Rule::kIou:
      return legacy ? advance_as<Rule::kIou, true>(run) : advance_as<Rule::kIou, false>(run);
    case Rule::kIos:
      return legacy ? advance_as<Rule::kIos, true>(run) : advance_as<Rule::kIos, false>(run);
    case Rule::kStitch: return advance_as<Rule::kStitch, false>(run);
  }
}

template Extremes<float> extremes<kIsa>(const Box<float>*, const int32_t*, int64_t);
template Extremes<double> extremes<kIsa>(const Box<double>*, const int32_t*, int64_t);
template void advance<kIsa, float>(Run<float>&);
template void advance<kIsa, double>(Run<double>&);

}  // namespace tinyops::greedy
