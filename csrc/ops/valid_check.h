// The check of `valid`, in the words of tinyops/ops/_maps.py.
#pragma once
#include "../torch_util.h"
#include "valid.h"

namespace tinyops {

// One (height, width) per image, on the device of the maps. Values are not looked at: on a GPU that
// would wait for them.
inline void check_valid(const char* op, const OptionalTensor& valid, const char* leader,
                        const Tensor& like, int64_t images) {
  if (!valid) return;
  check(valid->dim() == 2 && valid->size(0) == images && valid->size(1) == 2, op,
        ": valid must be [", images, ", 2], height and width of every image, got ",
        shape_text(*valid));
  check(valid->device() == like.device(), op, ": valid must be on ", device_text(like), " like ",
        leader, ", got ", device_text(*valid));
  check(valid->scalar_type() == ScalarType::Long, op, ": valid must be int64, got ",
        dtype_text(valid->scalar_type()));
}

}  // namespace tinyops
