#include "greedy_kernels.h"

#include "greedy_compare.h"

// A lambda that is part of its caller: like a function, see the remark on linkage in simd.h.
#define TINYOPS_INLINE __attribute__((always_inline))

namespace tinyops::greedy {
namespace {

constexpr Isa kIsa = static_cast<Isa>(TINYOPS_ISA);
constexpr int kBlock = 64;  // boxes that are prepared together
constexpr int kAhead = 4;   // boxes by which buckets are fetched ahead

// ---- Cells --------------------------------------------------------------------------------------

// Rises with x, whatever x is; NaN is in the first cell. (Rounding towards 0 only makes cell 0
// wider.)
template <typename T>
TINYOPS_HD int32_t cell(const Axis<T>& axis, int level, T x) {
  const T f = (x - axis.origin) * axis.inverse[level];
  const T low = f > axis.first[level] ? f : axis.first[level];
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

// How far from the centre of a box of this size the centre of one can lie that makes it go, or that
// it makes go, if that is at most `most` large.
template <typename T>
TINYOPS_HD T reach(T size, T most, T t, T slack) {
  const T other = most < size || t < T(0.5) ? most : size;
  const T r = (size + other) * T(0.5) - t * larger(size, other);
  return r * T(1.0001) + size * T(1e-5) + slack;
}
// Among boxes that meet it in `level`.
template <typename T>
TINYOPS_HD T reach_in(const Run<T>& run, const Axis<T>& axis, int level, T size, T slack) {
  const T t = run.threshold;
  return reach(size, smaller(axis.size[level], size / t * T(1.001)), t, slack);
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
      if (!table.buckets) continue;
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
      if (!table.buckets) continue;
      const T rx = (c.width + run.x.size[a]) * T(0.5001) + c.x_slack();
      const int32_t i0 = cell(run.x, a, c.x() - rx), i1 = cell(run.x, a, c.x() + rx);
      if (int64_t{i1 - i0 + 1} * (j1 - j0 + 1) > table.buckets) {  // then rather all there are
        for (uint32_t bucket = table.newest; bucket; bucket = run.next_in_table[bucket]) {
          ++run.compared;
          if (suppresses<rule, legacy>(run, bucket, c)) return true;
        }
        continue;
      }
      for (int32_t j = j0; j <= j1; ++j) {
        for (int32_t i = i0; i <= i1; ++i) {
          const uint32_t slot = slot_of(run, table, i, j);
          if (run.heads[slot] && any_in_slot<rule, legacy>(run, slot, c)) return true;
        }
      }
    }
  }
  return false;
}

template <Rule rule, typename T>
TINYOPS_HD void enter_cell(Run<T>& run, Table& table, uint32_t slot, const Candidate<T>& c) {
  uint32_t head = run.heads[slot];
  const auto owner = static_cast<uint8_t>(&table - run.tables);
  const bool foreign = run.shift != 0 && run.owner[head >> 4] != owner;  // a hash collision
  if (head == 0 || (head & 15) == kBucketBoxes || foreign) {
    const uint32_t fresh = run.used++;
    run.next[fresh] = head >> 4;
    run.owner[fresh] = owner;
    run.next_in_table[fresh] = table.newest;
    table.newest = fresh;
    ++table.buckets;
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
  const T rx = run.around ? T(0) : reach_in(run, run.x, a, c.width, c.x_slack());
  const T ry = run.around ? T(0) : reach_in(run, run.y, b, c.height, c.y_slack());
  const int32_t i0 = cell(run.x, a, c.x() - rx), i1 = cell(run.x, a, c.x() + rx);
  const int32_t j0 = cell(run.y, b, c.y() - ry), j1 = cell(run.y, b, c.y() + ry);
  // No window of a finite box has as many; without value checks, any may come.
  constexpr int32_t kMost = 4 * kLevelCells;
  return {b * kMostLevels + a, i0, larger(i0, smaller(i1, i0 + kMost)), j0,
          larger(j0, smaller(j1, j0 + kMost))};
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
    for (int32_t j = w.j0; j <= w.j1; ++j)
      for (int32_t i = w.i0; i <= w.i1; ++i)
        enter_cell<rule>(run, table, slot_of(run, table, i, j), c);
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
TINYOPS_HD bool any_entered(Run<T>& run, uint32_t slot, bool flat, const Candidate<T>& c) {
  if (run.around || (rule == Rule::kStitch && c.truncated)) return any_around<rule, legacy>(run, c);
  return flat ? any_in_slot<rule, legacy>(run, slot, c) : any_above<rule, legacy>(run, c);
}

// Calls decide(index, candidate, slot) for the boxes from run.position on, until it says no.
template <Rule rule, bool legacy, typename T, typename Decide>
TINYOPS_HD void walk(Run<T>& run, const Decide& decide) {
  Box<T> block[kBlock];
  uint32_t slots[kBlock + kAhead];
  while (run.position < run.pause) {
    const int count = static_cast<int>(smaller<int64_t>(kBlock, run.pause - run.position));
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
      if (!decide(order[k], c, slots[k])) {
        run.position += k;
        return;
      }
    }
    run.position += count;
  }
}

template <Rule rule, bool legacy, typename T>
void advance_as(Run<T>& run) {
  const bool flat = run.x.levels == 1 && run.y.levels == 1;
  walk<rule, legacy>(run, [&](int32_t index, const Candidate<T>& c, uint32_t slot) TINYOPS_INLINE {
    if (!c.empty() && any_entered<rule, legacy>(run, slot, flat, c)) return true;
    if (run.kept == run.most || (!c.empty() && !enter<rule>(run, c))) return false;
    run.keep[run.kept++] = index;
    return true;
  });
}

// Whether a box of another strip could make it go.
template <Rule rule, typename T>
TINYOPS_HD bool crosses(const Run<T>& run, const Strip<T>& strip, const Candidate<T>& c) {
  T r = (c.height + strip.height) * T(0.5001) + c.y_slack();
  const T t = run.threshold;
  // Stitching, a box can make a truncated one go that is larger than any bound.
  if (rule != Rule::kStitch && !run.around)
    r = smaller(r, reach(c.height, smaller(strip.height, c.height / t * T(1.001)), t, c.y_slack()));
  return c.y() - r < strip.low || c.y() + r >= strip.high;
}

template <Rule rule, bool legacy, typename T>
void advance_strip_as(Run<T>& run, Strip<T>& strip) {
  const bool flat = run.x.levels == 1 && run.y.levels == 1;
  Run<T>& put_off = strip.put_off;
  walk<rule, legacy>(run, [&](int32_t index, const Candidate<T>& c, uint32_t slot) TINYOPS_INLINE {
    if (!c.empty() && any_entered<rule, legacy>(run, slot, flat, c)) return true;
    const bool wait = !c.empty() && (crosses<rule>(run, strip, c) ||
                                     any_entered<rule, legacy>(put_off, slot, flat, c));
    Run<T>& where = wait ? put_off : run;
    if (!c.empty() && !enter<rule>(where, c)) {
      strip.short_of_buckets = wait;
      return false;
    }
    where.keep[where.kept++] = index;
    return true;
  });
}

// Calls f with rule and legacy as constants.
template <typename F>
TINYOPS_HD void for_rule(Rule rule, bool legacy, const F& f) {
  switch (rule) {
    case Rule::kIou:
      return legacy ? f.template run<Rule::kIou, true>() : f.template run<Rule::kIou, false>();
    case Rule::kIos:
      return legacy ? f.template run<Rule::kIos, true>() : f.template run<Rule::kIos, false>();
    case Rule::kStitch: return f.template run<Rule::kStitch, false>();
  }
}

template <typename T>
struct Advance {
  Run<T>& all;
  template <Rule rule, bool legacy>
  TINYOPS_HD void run() const {
    advance_as<rule, legacy>(all);
  }
};
template <typename T>
struct AdvanceStrip {
  Run<T>& all;
  Strip<T>& strip;
  template <Rule rule, bool legacy>
  TINYOPS_HD void run() const {
    advance_strip_as<rule, legacy>(all, strip);
  }
};

}  // namespace

template <Isa isa, typename T>
Extremes<T> extremes(const Box<T>* boxes, const int32_t* order, int64_t n) {
  // A box is one vector: x1 y1 x2 y2.
  typedef T Row __attribute__((vector_size(4 * sizeof(T))));
  using Places = decltype(Row{} < Row{});
  const auto row = [&](int64_t k) {
    Row r;
    memcpy(&r, boxes + (order ? order[k] : k), sizeof(r));  // not aligned
    return r;
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
  for_rule(run.rule, run.legacy, Advance<T>{run});
}
template <Isa isa, typename T>
void advance_strip(Run<T>& run, Strip<T>& strip) {
  for_rule(run.rule, run.legacy, AdvanceStrip<T>{run, strip});
}

template <Isa isa, typename T>
int64_t enter_kept(Run<T>& run, int64_t from) {
  const bool legacy = run.legacy;
  for (; from < run.kept; ++from) {
    const auto k = static_cast<int32_t>(run.keep[from]);
    const Box<T>& b = run.boxes[k];
    const bool empty = legacy ? candidate<Rule::kIou, true>(run, b, k).empty()
                              : candidate<Rule::kIou, false>(run, b, k).empty();
    if (empty) continue;
    const bool entered = run.rule == Rule::kStitch
                             ? enter<Rule::kStitch>(run, candidate<Rule::kStitch, false>(run, b, k))
                         : legacy ? enter<Rule::kIou>(run, candidate<Rule::kIou, true>(run, b, k))
                                  : enter<Rule::kIou>(run, candidate<Rule::kIou, false>(run, b, k));
    if (!entered) break;
  }
  return from;
}

template Extremes<float> extremes<kIsa>(const Box<float>*, const int32_t*, int64_t);
template Extremes<double> extremes<kIsa>(const Box<double>*, const int32_t*, int64_t);
template void advance<kIsa, float>(Run<float>&);
template void advance<kIsa, double>(Run<double>&);
template int64_t enter_kept<kIsa, float>(Run<float>&, int64_t);
template int64_t enter_kept<kIsa, double>(Run<double>&, int64_t);
template void advance_strip<kIsa, float>(Run<float>&, Strip<float>&);
template void advance_strip<kIsa, double>(Run<double>&, Strip<double>&);

}  // namespace tinyops::greedy
