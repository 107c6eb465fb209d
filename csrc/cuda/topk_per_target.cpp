#include "torch_cuda.h"

#include <algorithm>
#include <tuple>

// after torch_cuda.h, which pins the ABI
#include "../ops/topk_per_target_check.h"
#include "boxes_glue.h"
#include "max_overlap.h"
#include "topk_per_target.h"

namespace tinyops::topk_per_target {
namespace {

using namespace max_overlap;

// min_value: null without `assigned`.
Outputs run(const Inputs& given, int64_t k, bool check, const double* min_value) {
  check_arguments(given, k, min_value);
  const DeviceGuard guard(given.boxes);
  const Inputs in = given.dense();
  const cudaStream_t stream = current_stream(in.boxes);
  if (check) {
    ValueChecks checks(in.op, stream);
    checks.boxes("boxes", in.boxes);
    checks.boxes("targets", in.targets);
    checks.ask();
  }
  const int64_t boxes = in.boxes.size(0), targets = in.targets.size(0);
  const ScalarType dtype = in.boxes.scalar_type();
  const Outputs out(in, k, min_value != nullptr);
  const int64_t scratch = 2 * targets * std::min(k, boxes);
  const Tensor keys = empty_on(in.boxes, dtype, {scratch});
  const Tensor lists = empty_on(in.boxes, ScalarType::Int, {scratch});
  const Tensor cut = empty_on(in.boxes, dtype, {min_value ? targets : 0});
  for_compute_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = in.problem<T>();
    T* cuts = min_value ? mutable_data<T>(cut) : nullptr;
    check_cuda(best_boxes_cuda<T>(p, k, {mutable_data<T>(keys), mutable_data<int32_t>(lists)},
                                  mutable_data<T>(out.value), mutable_data<int64_t>(out.index),
                                  cuts, stream),
               in.op);
    if (min_value)
      check_cuda(last_cuda<T>(p, cuts, static_cast<T>(*min_value),
                              mutable_data<int64_t>(out.assigned), stream),
                 in.op);
  });
  return out;
}

std::tuple<Tensor, Tensor> topk_per_target_cuda(const Tensor& boxes, const Tensor& targets,
                                                int64_t k, int64_t mode,
                                                const OptionalTensor& target_mask,
                                                const OptionalTensor& image_ids,
                                                const OptionalTensor& target_image_ids,
                                                bool check) {
  const Outputs out = run({kName, mode, boxes, targets, target_mask, image_ids, target_image_ids},
                          k, check, nullptr);
  return {out.value, out.index};
}

std::tuple<Tensor, Tensor, Tensor> topk_per_target_ties_cuda(
    const Tensor& boxes, const Tensor& targets, int64_t k, int64_t mode, double min_value,
    const OptionalTensor& target_mask, const OptionalTensor& image_ids,
    const OptionalTensor& target_image_ids, bool check) {
  const Outputs out =
      run({kTiesName, mode, boxes, targets, target_mask, image_ids, target_image_ids}, k, check,
          &min_value);
  return {out.value, out.index, out.assigned};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("topk_per_target", TORCH_BOX(&topk_per_target_cuda));
  m.impl("topk_per_target_ties", TORCH_BOX(&topk_per_target_ties_cuda));
}

}  // namespace tinyops::topk_per_target
