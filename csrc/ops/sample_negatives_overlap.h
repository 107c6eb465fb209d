// The overlaps of sample_negatives_from_boxes: max_overlap through the dispatcher, so that CPU and
// GPU each use the kernel of their own.
#pragma once
#include "../torch_util.h"
// after torch_util.h, which pins the ABI
#include <torch/csrc/stable/stableivalue_conversions.h>

namespace tinyops::sample_negatives {

// [K], the largest overlap of each box with a target, 0 without targets. `op_name` is that of
// max_overlap in the namespace of the caller, who has checked all values.
inline Tensor largest_overlaps(const char* op_name, const Tensor& boxes, const Tensor& targets,
                               int64_t mode) {
  const OptionalTensor none;
  std::array<StableIValue, 7> stack{
      torch::stable::detail::from(boxes), torch::stable::detail::from(targets),
      torch::stable::detail::from(mode),  torch::stable::detail::from(none),
      torch::stable::detail::from(none),  torch::stable::detail::from(none),
      torch::stable::detail::from(false),
  };
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op_name, "", stack.data(), TORCH_ABI_VERSION));
  static_cast<void>(torch::stable::detail::to<Tensor>(stack[1]));  // the indices: takes and frees
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace tinyops::sample_negatives
