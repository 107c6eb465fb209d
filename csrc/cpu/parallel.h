// Work shared out to threads, with scratch memory for each.
#pragma once
#include "../torch_util.h"
// after torch_util.h, which pins the ABI
#include <algorithm>
#include <memory>
#include <new>

#include "maps.h"

namespace tinyops {

constexpr std::align_val_t kCacheLine{64};
struct AlignedDelete {
  void operator()(void* p) const { ::operator delete[](p, kCacheLine); }
};

// body(begin, end, scratch) over `units` of `unit_work` elements each.
template <typename A, typename F>
void parallel_units(int64_t units, int64_t unit_work, int64_t scratch_elements, const F& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, unit_work));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<A[], AlignedDelete> scratch(new (kCacheLine)
                                                          A[static_cast<size_t>(scratch_elements)]);
    body(begin, end, scratch.get());
  });
}

}  // namespace tinyops
