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
  check_metadata(kName, boxes, targets, mode, target_mask, image_ids, target_image_ids);
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const Inputs in =
      to_inputs(kName, boxes, targets, mode, target_mask, image_ids, target_image_ids);
  if (check) {
    ValueChecks checks(kName, stream);
    checks.boxes("boxes", in.boxes);
    checks.boxes("targets", in.targets);
    checks.ask();
  }
  const int64_t k = boxes.size(0);
  const Tensor value = empty_on(boxes, {k}, in.boxes.scalar_type());
  const Tensor index = empty_on(boxes, {k}, ScalarType::Long);
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
