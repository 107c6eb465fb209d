// How max_overlap and topk_per_target go about their work on the CPU: boxes and targets by image,
// and for every image whether a grid of its targets is faster than all pairs. Results do not depend
// on that choice, nor on the number of threads. Memory is O(boxes + targets).
#pragma once
#include "../torch_util.h"
// after torch_util.h, which pins the ABI
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "max_overlap.h"
#include "max_overlap_grid.h"

namespace tinyops::max_overlap {

// Nanoseconds, roughly: of one pair in the kernels of all pairs, of a query of the grid,
// of its rows of cells and of the entries in them, and of building it, per target.
template <typename T>
double pair_cost(Mode mode) {
  constexpr double kBits = 8 * sizeof(T);
  const double lanes = cpu_isa() == Isa::kAvx512 ? 512 / kBits
                       : cpu_isa() == Isa::kAvx2 ? 256 / kBits
                                                 : 128 / kBits;
  return (is_local(mode) ? 2.5 : 5.0) / lanes;
}
inline constexpr double kQueryCost = 8, kRowCost = 1, kEntryCost = 2, kBuildCost = 30;

// Nanoseconds of work below which another thread does not pay.
inline constexpr double kThreadCost = 20000;

template <typename T>
class Plan {
 public:
  explicit Plan(const Problem<T>& p) : problem_(p) {
    order_targets();
    order_boxes();
    sides_.resize(targets_.size());
    for_mode(p.mode, [&](auto mode) {
      for (size_t j = 0; j < targets_.size(); ++j)
        sides_[j] = side_of<decltype(mode)::value, true>(p.targets[targets_[j]]);
    });
    grids_.resize(static_cast<size_t>(groups()));
    costs_.resize(static_cast<size_t>(groups()));
    for (int64_t g = 0; g < groups(); ++g) choose(g);
  }

  // Images that have targets. Their boxes come first in the order of boxes, those of the images
  // without come last, from position end() on.
  int64_t groups() const { return static_cast<int64_t>(target_begin_.size()) - 1; }
  int64_t end() const { return box_begin_.back(); }
  Group<T> group(int64_t g) const {
    const size_t at = static_cast<size_t>(g);
    const int64_t first = target_begin_[at];
    return {problem_.mode,
            problem_.boxes,
            box_order_.empty() ? nullptr : box_order_.data(),
            box_begin_[at],
            box_begin_[at + 1],
            sides_.data() + first,
            targets_.data() + first,
            target_begin_[at + 1] - first};
  }
  // Null where all pairs are faster.
  const Grid<T>* grid(int64_t g) const { return grids_[static_cast<size_t>(g)].get(); }
  // Of one box in this group.
  double cost(int64_t g) const { return costs_[static_cast<size_t>(g)]; }

  // body(group, grid or null) for parts of groups, on several threads.
  template <typename F>
  void for_boxes(const F& body) const {
    if (end() == 0) return;
    double total = 0;
    for (int64_t g = 0; g < groups(); ++g) {
      const Group<T> all = group(g);
      total += cost(g) * static_cast<double>(all.end - all.begin);
    }
    const double each = total / static_cast<double>(end());
    const int64_t grain = std::max<int64_t>(1, static_cast<int64_t>(kThreadCost / each));
    torch::stable::parallel_for(0, end(), grain, [&](int64_t begin, int64_t stop) {
      auto next = std::upper_bound(box_begin_.begin(), box_begin_.end(), begin);
      for (int64_t g = next - box_begin_.begin() - 1; begin < stop; ++g) {
        Group<T> part = group(g);
        part.begin = begin;
        part.end = begin = std::min(part.end, stop);
        if (part.begin < part.end) body(part, grid(g));
      }
    });
  }
  template <typename F>
  void for_boxes_without_target(const F& body) const {
    for (int64_t k = end(); k < problem_.k; ++k)
      body(box_order_.empty() ? k : int64_t{box_order_[static_cast<size_t>(k)]});
  }

 private:
  // The targets that the mask allows, by image and index.
  void order_targets() {
    targets_.reserve(static_cast<size_t>(problem_.m));
    for (int64_t j = 0; j < problem_.m; ++j)
      if (!problem_.target_mask || problem_.target_mask[j])
        targets_.push_back(static_cast<int32_t>(j));
    target_begin_.push_back(0);
    const int64_t* ids = problem_.target_image_ids;
    if (!ids) {
      if (!targets_.empty()) target_begin_.push_back(static_cast<int64_t>(targets_.size()));
      return;
    }
    const auto before = [ids](int32_t a, int32_t b) { return ids[a] < ids[b]; };
    if (!std::is_sorted(targets_.begin(), targets_.end(), before))
      std::stable_sort(targets_.begin(), targets_.end(), before);
    for (size_t j = 0; j < targets_.size(); ++j) {
      if (j > 0 && ids[targets_[j]] == images_.back()) continue;
      if (j > 0) target_begin_.push_back(static_cast<int64_t>(j));
      images_.push_back(ids[targets_[j]]);
    }
    if (!targets_.empty()) target_begin_.push_back(static_cast<int64_t>(targets_.size()));
  }

  // The boxes by image and index, those of images without targets at the end.
  void order_boxes() {
    box_begin_.assign(static_cast<size_t>(groups() + 1), 0);
    if (groups() == 0) return;
    if (!problem_.image_ids) {
      box_begin_[1] = problem_.k;
      return;
    }
    const size_t none = images_.size(), count = static_cast<size_t>(problem_.k);
    std::vector<int32_t> group_of(count);
    std::vector<int64_t> sizes(none + 1, 0);
    size_t g = 0;
    for (size_t k = 0; k < count; ++k) {
      const int64_t id = problem_.image_ids[k];
      if (g == none || images_[g] != id) {
        g = static_cast<size_t>(std::lower_bound(images_.begin(), images_.end(), id) -
                                images_.begin());
        if (g != none && images_[g] != id) g = none;
      }
      group_of[k] = static_cast<int32_t>(g);
      ++sizes[g];
    }
    std::vector<int64_t> next(none + 1, 0);
    std::partial_sum(sizes.begin(), sizes.end() - 1, next.begin() + 1);
    box_begin_ = next;
    box_order_.resize(count);
    for (size_t k = 0; k < count; ++k)
      box_order_[static_cast<size_t>(next[static_cast<size_t>(group_of[k])]++)] =
          static_cast<int32_t>(k);
  }

  // Builds a grid and keeps it if, as a sample of boxes says, it is faster than all pairs.
  void choose(int64_t g) {
    constexpr int64_t kSample = 64;
    const Group<T> all = group(g);
    const int64_t boxes = all.end - all.begin;
    double& cost = costs_[static_cast<size_t>(g)];
    cost = 2 + pair_cost<T>(problem_.mode) * static_cast<double>(all.n);
    if (!is_local(problem_.mode) || boxes == 0 || all.n < 32) return;
    const double build = kBuildCost * static_cast<double>(all.n) / static_cast<double>(boxes);
    if (kQueryCost + build > cost) return;
    auto grid = std::make_unique<Grid<T>>(all.sides, all.targets, all.n);
    int64_t rows = 0, entries = 0, sampled = 0;
    const int64_t step = std::max<int64_t>(1, boxes / kSample);
    for (int64_t k = all.begin; k < all.end; k += step, ++sampled)
      grid->count(side_of<Mode::kIou, false>(all.boxes[all.box_at(k)]), rows, entries);
    const double found = kQueryCost + (kRowCost * static_cast<double>(rows) +
                                       kEntryCost * static_cast<double>(entries)) /
                                          static_cast<double>(sampled);
    if (found > cost) return;
    cost = found;
    grids_[static_cast<size_t>(g)] = std::move(grid);
  }

  Problem<T> problem_;
  std::vector<int32_t> targets_, box_order_;  // box_order_ is empty for the order of the input
  std::vector<int64_t> images_, target_begin_, box_begin_;
  std::vector<Side<T>> sides_;
  std::vector<std::unique_ptr<Grid<T>>> grids_;
  std::vector<double> costs_;
};

}  // namespace tinyops::max_overlap
