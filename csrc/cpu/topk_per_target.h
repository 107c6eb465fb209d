// The CPU kernels of topk_per_target. They fill lists; the boxes of a group come in the order of
// their indices.
#pragma once
#include "../ops/topk_per_target.h"
#include "max_overlap.h"

namespace tinyops::topk_per_target {

using max_overlap::GridView;
using max_overlap::Group;

// All boxes of the group for its targets first_target..end_target, counted in the group.
template <Isa isa, typename T>
void fill_from_all(const Group<T>& group, int64_t first_target, int64_t end_target, Best<T>* lists);

// Those boxes of the group that overlap a target. lists and last_box are by index of the target;
// last_box is the last box that looked at it, -1 at the start.
template <Isa isa, typename T>
void fill_from_near(const Group<T>& group, const GridView<T>& grid, Best<T>* lists,
                    int32_t* last_box);

}  // namespace tinyops::topk_per_target
