#include "../ops/topk_per_target_check.h"
// after topk_per_target_check.h, which pins the ABI
#include <limits>
#include <tuple>

#include "boxes.h"
#include "max_overlap_plan.h"
#include "topk_per_target.h"

namespace tinyops::topk_per_target {
namespace {

using namespace max_overlap;

// Lists of `most` boxes for a number of targets.
template <typename T>
struct Lists {
  std::vector<T> keys;
  std::vector<int32_t> boxes;
  std::vector<Best<T>> best;

  Lists(int64_t targets, int64_t most)
      : keys(static_cast<size_t>(targets * most)), boxes(keys.size()) {
    best.reserve(static_cast<size_t>(targets));
    for (int64_t t = 0; t < targets; ++t)
      best.push_back(
          {keys.data() + t * most, boxes.data() + t * most, 0, static_cast<int32_t>(most)});
  }
};

// Vectors of boxes against every target: threads share the targets.
template <typename T>
void fill_all_pairs(const Plan<T>& plan, int64_t g, Lists<T>& lists) {
  const Group<T> group = plan.group(g);
  if (group.begin == group.end) return;
  const double each =
      plan.cost(g) / static_cast<double>(group.n) * static_cast<double>(group.end - group.begin);
  const int64_t grain = std::max<int64_t>(1, static_cast<int64_t>(kThreadCost / each));
  torch::stable::parallel_for(0, group.n, grain, [&](int64_t begin, int64_t end) {
    for_isa(cpu_isa(),
            [&](auto isa) { fill_from_all<isa.value, T>(group, begin, end, lists.best.data()); });
  });
}

// Every box against the targets near it. Threads share the boxes, each with lists of its own, of
// which there are no more than the results and the boxes together take; then they are joined.
template <typename T>
void fill_near_pairs(const Plan<T>& plan, int64_t g, Lists<T>& lists,
                     std::vector<int32_t>& last_box) {
  const Group<T> group = plan.group(g);
  const int64_t boxes = group.end - group.begin, most = lists.best[0].most;
  const int64_t targets = static_cast<int64_t>(lists.best.size());
  const auto fill = [&](const Group<T>& part, Lists<T>& to, std::vector<int32_t>& last) {
    for_isa(cpu_isa(), [&](auto isa) {
      fill_from_near<isa.value, T>(part, plan.grid(g)->view(), to.best.data(), last.data());
    });
  };
  const int64_t worth =
      static_cast<int64_t>(plan.cost(g) * static_cast<double>(boxes) / kThreadCost);
  const int64_t parts =
      std::min({int64_t{torch::stable::get_num_threads()}, worth, 1 + boxes / (targets * most)});
  if (parts <= 1) return fill(group, lists, last_box);
  std::vector<Lists<T>> own(static_cast<size_t>(parts), Lists<T>(0, 0));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      Lists<T>& to = own[static_cast<size_t>(part)];
      to = Lists<T>(targets, most);
      Group<T> share = group;
      share.begin = group.begin + boxes * part / parts;
      share.end = group.begin + boxes * (part + 1) / parts;
      std::vector<int32_t> last(last_box.size(), -1);
      fill(share, to, last);
    }
  });
  for (const Lists<T>& part : own) {
    for (int64_t j = 0; j < group.n; ++j) {
      const size_t t = static_cast<size_t>(group.targets[j]);
      const Best<T>& from = part.best[t];
      for (int32_t k = 0; k < from.count; ++k) {
        if (!lists.best[t].wants(from.keys[k], from.boxes[k])) break;
        lists.best[t].insert(from.keys[k], from.boxes[k]);
      }
    }
  }
}

// Boxes that do not overlap the target, lowest index first, until the list is full.
template <typename T>
void add_boxes_without_overlap(const Group<T>& group, Best<T>& list) {
  std::vector<int32_t> known(list.boxes, list.boxes + list.count);
  std::sort(known.begin(), known.end());
  auto next = known.begin();
  for (int64_t k = group.begin; k < group.end && !list.is_full(); ++k) {
    const int32_t i = static_cast<int32_t>(group.box_at(k));
    if (next != known.end() && *next == i)
      ++next;
    else
      list.insert(T(0), i);  // at the end: what is there is better
  }
}

template <typename T>
void fill_lists(const Plan<T>& plan, Lists<T>& lists) {
  std::vector<int32_t> last_box(lists.best.size(), -1);
  for (int64_t g = 0; g < plan.groups(); ++g) {
    const Group<T> group = plan.group(g);
    if (!plan.grid(g)) {
      fill_all_pairs(plan, g, lists);
      continue;
    }
    fill_near_pairs(plan, g, lists, last_box);
    for (int64_t j = 0; j < group.n; ++j)
      add_boxes_without_overlap(group, lists.best[static_cast<size_t>(group.targets[j])]);
  }
}

// The highest target of every box that is as good for it as its k-th best one.
template <typename T>
void assign(const Plan<T>& plan, const Lists<T>& lists, T min_value, int64_t boxes,
            int64_t* assigned) {
  std::fill(assigned, assigned + boxes, int64_t{-1});
  std::vector<T> cut;
  cut.reserve(lists.best.size());
  for (const Best<T>& list : lists.best)
    cut.push_back(list.count ? list.keys[list.count - 1] : std::numeric_limits<T>::quiet_NaN());
  plan.for_boxes([&](const Group<T>& part, const Grid<T>* grid) {
    for_isa(cpu_isa(), [&](auto isa) {
      if (grid)
        last_of_near<isa.value, T>(part, grid->view(), cut.data(), min_value, assigned);
      else
        last_of_all<isa.value, T>(part, cut.data(), min_value, assigned);
    });
  });
}

// min_value: null without `assigned`.
Outputs run(const Inputs& given, int64_t k, bool check, const double* min_value) {
  check_arguments(given, k, min_value);
  const Inputs in = given.dense();
  const int64_t boxes = in.boxes.size(0), targets = in.targets.size(0);
  const Outputs out(in, k, min_value != nullptr);
  for_compute_dtype(in.boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = in.problem<T>();
    if (check) {
      check_box_values_cpu(in.op, "boxes", p.boxes, boxes);
      check_box_values_cpu(in.op, "targets", p.targets, targets);
    }
    const Plan<T> plan(p);
    Lists<T> lists(targets, std::min(k, boxes));
    fill_lists(plan, lists);
    if (min_value)
      assign(plan, lists, static_cast<T>(*min_value), boxes, mutable_data<int64_t>(out.assigned));
    T* value = mutable_data<T>(out.value);
    int64_t* index = mutable_data<int64_t>(out.index);
    for (const Best<T>& list : lists.best) {
      for (int64_t r = 0; r < k; ++r, ++value, ++index) {
        const bool there = r < list.count;
        *value = there ? value_of_key(p.mode, list.keys[r]) : no_value<T>(p.mode);
        *index = there ? int64_t{list.boxes[r]} : -1;
      }
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> topk_per_target_cpu(const Tensor& boxes, const Tensor& targets,
                                               int64_t k, int64_t mode,
                                               const OptionalTensor& target_mask,
                                               const OptionalTensor& image_ids,
                                               const OptionalTensor& target_image_ids, bool check) {
  const Outputs out = run({kName, mode, boxes, targets, target_mask, image_ids, target_image_ids},
                          k, check, nullptr);
  return {out.value, out.index};
}

std::tuple<Tensor, Tensor, Tensor> topk_per_target_ties_cpu(
    const Tensor& boxes, const Tensor& targets, int64_t k, int64_t mode, double min_value,
    const OptionalTensor& target_mask, const OptionalTensor& image_ids,
    const OptionalTensor& target_image_ids, bool check) {
  const Outputs out =
      run({kTiesName, mode, boxes, targets, target_mask, image_ids, target_image_ids}, k, check,
          &min_value);
  return {out.value, out.index, out.assigned};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("topk_per_target", TORCH_BOX(&topk_per_target_cpu));
  m.impl("topk_per_target_ties", TORCH_BOX(&topk_per_target_ties_cpu));
}

}  // namespace tinyops::topk_per_target
