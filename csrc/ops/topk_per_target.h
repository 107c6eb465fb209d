// The k best boxes of every target, as a list that is filled box by box. Shared by the CPU and CUDA
// kernels of topk_per_target.
#pragma once
#include "max_overlap.h"

namespace tinyops::topk_per_target {

using max_overlap::Mode;

// Whether (key, box) comes before (other_key, other_box): keys fall, ties go to the lower index.
template <typename T>
TINYOPS_HD bool is_before(T key, int32_t box, T other_key, int32_t other_box) {
  return key > other_key || (key == other_key && box < other_box);
}

// The best boxes so far of one target, best first, in memory for `most` of them.
template <typename T>
struct Best {
  T* keys;
  int32_t* boxes;
  int32_t count, most;

  TINYOPS_HD bool is_full() const { return count == most; }
  TINYOPS_HD bool wants(T key, int32_t box) const {
    return !is_full() || is_before(key, box, keys[count - 1], boxes[count - 1]);
  }
  // Only what it wants, and no box twice.
  TINYOPS_HD void insert(T key, int32_t box) {
    int32_t at = is_full() ? count - 1 : count++;
    for (; at > 0 && is_before(key, box, keys[at - 1], boxes[at - 1]); --at) {
      keys[at] = keys[at - 1];
      boxes[at] = boxes[at - 1];
    }
    keys[at] = key;
    boxes[at] = box;
  }
};

}  // namespace tinyops::topk_per_target
