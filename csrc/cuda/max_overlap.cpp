#include "torch_cuda.h"

#include <tuple>

// after torch_cuda.h, which pins the ABI
#include "../ops/max_overlap_check.h"
#include "boxes_glue.h"
#include "max_overlap.h"

namespace tinyops::max_overlap {
namespace {

constexpr char kName[] = "max_overlap";

std::tuple<Tensor, Tensor> max_overlap_cuda(const Tensor& boxes, const Tensor& targets,
                                            int64_t mode, const OptionalTensor& target_mask,
                                            const OptionalTensor& image_ids,
                                            const OptionalTensor& target_image_ids, bool check) {
  const Inputs given{kName, mode, boxes, targets, target_mask, image_ids, target_image_ids};
  given.check_metadata();
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const Inputs in = given.dense();
  if (check) {
    ValueChecks checks(kName, stream);
    checks.boxes("boxes", in.boxes);
    checks.boxes("targets", in.targets);
    checks.ask();
  }
  const int64_t k = boxes.size(0);
  const Tensor value = empty_on(boxes, in.boxes.scalar_type(), {k});
  const Tensor index = empty_on(boxes, ScalarType::Long, {k});
  for_compute_dtype(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    check_cuda(
        best_cuda(in.problem<T>(), mutable_data<T>(value), mutable_data<int64_t>(index), stream),
        kName);
  });
  return {value, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("max_overlap", TORCH_BOX(&max_overlap_cuda));
}

}  // namespace tinyops::max_overlap
