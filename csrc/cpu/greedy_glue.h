// The greedy suppression on torch's threads.
#pragma once
#include "../torch_util.h"
#include "greedy.h"

namespace tinyops::greedy {

inline void on_torch_threads(int64_t pieces, int64_t n,
                             const std::function<void(int64_t, int64_t)>& body) {
  if (pieces <= 1) return body(0, n);
  const int64_t grain = std::max<int64_t>(1, ceil_div(n, pieces));
  torch::stable::parallel_for(0, n, grain, body);
}

}  // namespace tinyops::greedy
