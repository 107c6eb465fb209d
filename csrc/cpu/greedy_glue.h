// The greedy suppression on torch's threads.
#pragma once
#include "../torch_util.h"
#include "greedy.h"

namespace tinyops::greedy {

// With fewer boxes, waking threads up and cutting the group into strips took longer than it saved.
constexpr int64_t kThreadBoxes = 200'000;

inline Parallel torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()), kThreadBoxes,
          [](int64_t n, const std::function<void(int64_t)>& body) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
              for (int64_t k = begin; k < end; ++k) body(k);
            });
          }};
}

}  // namespace tinyops::greedy
