// Argument checks that feature operators share: rank, type and device of a map. `op` is the name of
// the operator; tinyops/ops/_maps.py says the same to fake tensors and Triton.
#pragma once
#include "../torch_util.h"

namespace tinyops {

inline void check_rank(const char* op, const char* name, const Tensor& t) {
  check(t.dim() == 4, op, ": ", name, " must have 4 dimensions [N, C, H, W], got ", shape_text(t));
}

// The map that the others are compared with.
inline void check_map(const char* op, const char* name, const Tensor& t) {
  check_rank(op, name, t);
  check(is_float_dtype(t.scalar_type()), op, ": ", name,
        " must be float32, float64, float16 or bfloat16, got ", dtype_text(t.scalar_type()));
}

inline void check_map_like(const char* op, const char* name, const Tensor& t, const char* leader,
                           const Tensor& like) {
  check_rank(op, name, t);
  check(t.device() == like.device(), op, ": ", name, " must be on ", device_text(like), " like ",
        leader, ", got ", device_text(t));
  check(t.scalar_type() == like.scalar_type(), op, ": ", name, " must be ",
        dtype_text(like.scalar_type()), " like ", leader, ", got ", dtype_text(t.scalar_type()));
}

inline void check_map_size(const char* op, const char* name, const Tensor& t,
                           std::array<int64_t, 4> size) {
  bool same = true;
  for (int d = 0; d < 4; ++d) same &= t.size(d) == size[d];
  check(same, op, ": ", name, " must be [", size[0], ", ", size[1], ", ", size[2], ", ", size[3],
        "], got ", shape_text(t));
}

}  // namespace tinyops
