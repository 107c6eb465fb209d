#include "../ops/max_overlap_check.h"
// after max_overlap_check.h, which pins the ABI
#include <tuple>

#include "boxes.h"
#include "max_overlap_plan.h"

namespace tinyops::max_overlap {
namespace {

constexpr char kName[] = "max_overlap";

std::tuple<Tensor, Tensor> max_overlap_cpu(const Tensor& boxes, const Tensor& targets, int64_t mode,
                                           const OptionalTensor& target_mask,
                                           const OptionalTensor& image_ids,
                                           const OptionalTensor& target_image_ids, bool check) {
  const Inputs given{kName, mode, boxes, targets, target_mask, image_ids, target_image_ids};
  given.check_metadata();
  const Inputs in = given.dense();
  const int64_t k = boxes.size(0);
  const Tensor value = empty_on(boxes, in.boxes.scalar_type(), {k});
  const Tensor index = empty_on(boxes, ScalarType::Long, {k});
  for_compute_dtype(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = in.problem<T>();
    if (check) {
      check_box_values_cpu(kName, "boxes", p.boxes, p.k);
      check_box_values_cpu(kName, "targets", p.targets, p.m);
    }
    run(p, mutable_data<T>(value), mutable_data<int64_t>(index));
  });
  return {value, index};
}

}  // namespace

template <typename T>
void run(const Problem<T>& p, T* value, int64_t* index) {
  const Plan<T> plan(p);
  plan.for_boxes_without_target([&](int64_t i) {
    value[i] = no_value<T>(p.mode);
    index[i] = -1;
  });
  plan.for_boxes([&](const Group<T>& part, const Grid<T>* grid) {
    for_isa(cpu_isa(), [&](auto isa) {
      if (grid)
        best_of_near<isa.value, T>(part, grid->view(), value, index);
      else
        best_of_all<isa.value, T>(part, value, index);
    });
  });
}
template void run(const Problem<float>&, float*, int64_t*);
template void run(const Problem<double>&, double*, int64_t*);

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("max_overlap", TORCH_BOX(&max_overlap_cpu));
}

}  // namespace tinyops::max_overlap
