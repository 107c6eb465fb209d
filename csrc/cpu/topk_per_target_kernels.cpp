// The best boxes of every target: vectors of boxes against one target after the other, or every box
// against the targets near it.
#include "topk_per_target.h"

#include "max_overlap_near.h"

namespace tinyops::topk_per_target {
namespace {

using namespace max_overlap;

constexpr int kBlock = 1024;  // boxes whose sides stay in the L1 cache while targets pass by

template <Mode kMode, typename T>
void from_all(const Group<T>& g, int64_t first_target, int64_t end_target, Best<T>* lists) {
  constexpr int kStep = kLanes<T>;
  alignas(64) T sides[5][kBlock];
  for (int64_t at = g.begin; at < g.end; at += kBlock) {
    const int count = static_cast<int>(g.end - at < kBlock ? g.end - at : kBlock);
    for (int k = 0; k < count; k += kStep) {
      const Side<Vector<T>> s = load_boxes<kMode>(g.boxes, g.order, at + k, count - k);
      __builtin_memcpy(sides[0] + k, &s.a, sizeof(s.a));
      __builtin_memcpy(sides[1] + k, &s.b, sizeof(s.b));
      __builtin_memcpy(sides[2] + k, &s.c, sizeof(s.c));
      __builtin_memcpy(sides[3] + k, &s.d, sizeof(s.d));
      __builtin_memcpy(sides[4] + k, &s.e, sizeof(s.e));
    }
    for (int64_t j = first_target; j < end_target; ++j) {
      const Side<Vector<T>> target = all_lanes(g.sides[j]);
      Best<T>& list = lists[g.targets[j]];
      for (int k = 0; k < count; k += kStep) {
        const Side<Vector<T>> box{read<Vector<T>>(sides[0] + k), read<Vector<T>>(sides[1] + k),
                                  read<Vector<T>>(sides[2] + k), read<Vector<T>>(sides[3] + k),
                                  read<Vector<T>>(sides[4] + k)};
        unsigned wanted = count - k < kStep ? (1u << (count - k)) - 1 : (1u << kStep) - 1;
        Vector<T> keys;
        if constexpr (is_local(kMode)) {
          const Vector<T> in = overlap_area(box, target);
          if (list.is_full() && !above(in, Vector<T>{})) continue;  // later boxes lose ties
          keys = key_of_intersection<kMode>(in, box, target);
        } else {
          keys = key<T, kMode>(box, target);
        }
        if (list.is_full()) wanted &= above(keys, all_lanes(list.keys[list.count - 1]));
        for (int lane = 0; wanted; ++lane, wanted >>= 1) {
          if (!(wanted & 1u)) continue;
          const int32_t i = static_cast<int32_t>(g.box_at(at + k + lane));
          if (list.wants(keys[lane], i)) list.insert(keys[lane], i);
        }
      }
    }
  }
}

template <Mode kMode, typename T>
void from_near(const Group<T>& g, const GridView<T>& grid, Best<T>* lists, int32_t* last_box) {
  int32_t box = 0;
  for_near<kMode>(
      g, grid, [&](int64_t i) { box = static_cast<int32_t>(i); },
      [&](Vector<T> keys, unsigned hits, const int32_t* targets) {
        for (int k = 0; hits; ++k, hits >>= 1) {
          const int32_t t = targets[k];
          if (!(hits & 1u) || last_box[t] == box) continue;  // a target is in several cells
          last_box[t] = box;
          // A product of sizes may be rounded to 0: that is no overlap.
          if (keys[k] > T(0) && lists[t].wants(keys[k], box)) lists[t].insert(keys[k], box);
        }
      },
      [](int64_t) {});
}

}  // namespace

template <Isa isa, typename T>
void fill_from_all(const Group<T>& group, int64_t first_target, int64_t end_target,
                   Best<T>* lists) {
  for_mode(group.mode, [&](auto mode) {
    from_all<decltype(mode)::value>(group, first_target, end_target, lists);
  });
}
template <Isa isa, typename T>
void fill_from_near(const Group<T>& group, const GridView<T>& grid, Best<T>* lists,
                    int32_t* last_box) {
  for_local_mode(group.mode, [&](auto mode) {
    from_near<decltype(mode)::value>(group, grid, lists, last_box);
  });
}

#define TINYOPS_INSTANTIATE(T)                                                       \
  template void fill_from_all<kIsa, T>(const Group<T>&, int64_t, int64_t, Best<T>*); \
  template void fill_from_near<kIsa, T>(const Group<T>&, const GridView<T>&, Best<T>*, int32_t*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::topk_per_target
