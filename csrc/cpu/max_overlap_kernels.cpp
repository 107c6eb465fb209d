// Boxes against all targets of their image: a vector of boxes, one target after the other. For
// modes where far targets count, and where a grid does not pay (max_overlap_plan.h). And boxes
// against the targets near them.
#include "max_overlap.h"
#include "max_overlap_near.h"

namespace tinyops::max_overlap {
namespace {

// body(keys, j) for the targets j that can change anything.
template <Mode kMode, typename T, typename F>
inline void for_targets(const Group<T>& g, const Side<Vector<T>>& box, const F& body) {
  for (int64_t j = 0; j < g.n; ++j) {
    const Side<Vector<T>> target = all_lanes(g.sides[j]);
    if constexpr (is_local(kMode)) {
      const Vector<T> in = overlap_area(box, target);
      if (!above(in, Vector<T>{})) continue;
      body(key_of_intersection<kMode>(in, box, target), j);
    } else {
      body(key<T, kMode>(box, target), j);
    }
  }
}

template <Mode kMode, typename T>
void best(const Group<T>& g, T* value, int64_t* index) {
  constexpr int kStep = kLanes<T>;
  for (int64_t at = g.begin; at < g.end; at += kStep) {
    const int64_t count = g.end - at < kStep ? g.end - at : kStep;
    const Side<Vector<T>> box = load_boxes<kMode>(g.boxes, g.order, at, count);
    Vector<T> highest = all_lanes(lowest_key<T>(kMode));
    Index<T> which{};
    for_targets<kMode>(g, box, [&](Vector<T> keys, int64_t j) {
      const auto better = keys > highest;  // not equal ones: the lower index stays
      highest = better ? keys : highest;
      which =
          better ? Index<T>{} + static_cast<std::remove_reference_t<decltype(which[0])>>(j) : which;
    });
    for (int k = 0; k < count; ++k) {
      const int64_t i = g.box_at(at + k);
      value[i] = value_of_key(kMode, static_cast<T>(highest[k]));
      index[i] = g.targets[which[k]];
    }
  }
}

template <Mode kMode, typename T>
void best(const Group<T>& g, const GridView<T>& grid, T* value, int64_t* index) {
  Vector<T> highest;  // of the entries seen in each lane
  Index<T> which;
  unsigned found;
  for_near<kMode>(
      g, grid,
      [&](int64_t) {
        highest = Vector<T>{};
        which = Index<T>{};
        found = 0;
      },
      [&](Vector<T> keys, unsigned hits, const int32_t* targets) {
        const Index<T> index_of = __builtin_convertvector(read<Ints<T>>(targets), Index<T>);
        const auto better = (keys > highest) | ((keys == highest) & (index_of < which));
        highest = better ? keys : highest;
        which = better ? index_of : which;
        found |= hits;
      },
      [&](int64_t i) {
        T best_key = 0;
        int32_t best_target = g.targets[0];  // what overlaps nothing belongs to the first target
        for (int k = 0; found; ++k, found >>= 1) {
          if (!(found & 1u) || !(highest[k] > T(0))) continue;  // areas may overflow or underflow
          const T key = highest[k];
          const int32_t target = static_cast<int32_t>(which[k]);
          if (key > best_key || (key == best_key && target < best_target)) {
            best_key = key;
            best_target = target;
          }
        }
        value[i] = best_key;
        index[i] = best_target;
      });
}

// Whether a key with a value that is at least min_value takes a box for a target.
template <Mode kMode, typename T>
inline bool takes(T key, T cut, T min_value) {
  if (!(key >= cut)) return false;  // nor where the cut is NaN
  const T v = value_of_key(kMode, key);
  return v >= min_value && (kMode == Mode::kGiou || v > T(0));
}

template <Mode kMode, typename T>
void last(const Group<T>& g, const T* cut, T min_value, int64_t* assigned) {
  constexpr int kStep = kLanes<T>;
  for (int64_t at = g.begin; at < g.end; at += kStep) {
    const int64_t count = g.end - at < kStep ? g.end - at : kStep;
    const Side<Vector<T>> box = load_boxes<kMode>(g.boxes, g.order, at, count);
    for_targets<kMode>(g, box, [&](Vector<T> keys, int64_t j) {
      const T least = cut[g.targets[j]];
      // Not above(keys, least): those equal to the cut are in. Of a NaN none is.
      unsigned in = least == least ? ~above(all_lanes(least), keys) : 0u;
      in &= (1u << count) - 1;
      for (int k = 0; in; ++k, in >>= 1) {
        if (!(in & 1u)) continue;
        if (takes<kMode, T>(keys[k], least, min_value)) assigned[g.box_at(at + k)] = g.targets[j];
      }
    });
  }
}

template <Mode kMode, typename T>
void last(const Group<T>& g, const GridView<T>& grid, const T* cut, T min_value,
          int64_t* assigned) {
  int64_t latest;
  for_near<kMode>(
      g, grid, [&](int64_t) { latest = -1; },
      [&](Vector<T> keys, unsigned hits, const int32_t* targets) {
        for (int k = 0; hits; ++k, hits >>= 1) {
          if (!(hits & 1u) || targets[k] <= latest) continue;
          if (takes<kMode, T>(keys[k], cut[targets[k]], min_value)) latest = targets[k];
        }
      },
      [&](int64_t i) {
        if (latest >= 0) assigned[i] = latest;
      });
}

}  // namespace

template <Isa isa, typename T>
void best_of_all(const Group<T>& group, T* value, int64_t* index) {
  for_mode(group.mode, [&](auto mode) { best<decltype(mode)::value>(group, value, index); });
}
template <Isa isa, typename T>
void best_of_near(const Group<T>& group, const GridView<T>& grid, T* value, int64_t* index) {
  for_local_mode(group.mode,
                 [&](auto mode) { best<decltype(mode)::value>(group, grid, value, index); });
}
template <Isa isa, typename T>
void last_of_all(const Group<T>& group, const T* cut, T min_value, int64_t* assigned) {
  for_mode(group.mode,
           [&](auto mode) { last<decltype(mode)::value>(group, cut, min_value, assigned); });
}

template <Isa isa, typename T>
void last_of_near(const Group<T>& group, const GridView<T>& grid, const T* cut, T min_value,
                  int64_t* assigned) {
  for_local_mode(group.mode, [&](auto mode) {
    last<decltype(mode)::value>(group, grid, cut, min_value, assigned);
  });
}

#define TINYOPS_INSTANTIATE(T)                                                            \
  template void best_of_all<kIsa, T>(const Group<T>&, T*, int64_t*);                      \
  template void best_of_near<kIsa, T>(const Group<T>&, const GridView<T>&, T*, int64_t*); \
  template void last_of_all<kIsa, T>(const Group<T>&, const T*, T, int64_t*);             \
  template void last_of_near<kIsa, T>(const Group<T>&, const GridView<T>&, const T*, T, int64_t*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::max_overlap
