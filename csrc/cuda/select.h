// Stream compaction on the GPU: pick the marked ones of a list, in its order, in two steps, so that
// the length can be learnt in between.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common.h"
#include "arena.h"

namespace tinyops {

class Selection {
 public:
  // Room for lists of up to n elements.
  Selection(Arena& arena, int64_t n) : before_(arena.take<int32_t>(chunks(n) + 1)) {}

  static int64_t chunks(int64_t n) { return ceil_div(n, kChunk); }
  // [chunks(n) + 1] marked ones before each chunk of the list that was counted last.
  int32_t* before() const { return before_; }
  // How many are marked in all.
  const int32_t* total(int64_t n) const { return before_ + chunks(n); }

  static constexpr int kChunk = 256;

 private:
  int32_t* before_;
};

// marks: [n], 1 is marked. count: null, or gets min(total, most).
cudaError_t count_marked(const Selection& s, const uint8_t* marks, int n, int64_t most,
                         int64_t* count, cudaStream_t stream);
// The first `most` marked elements of `list` to `out`.
cudaError_t take_marked(const Selection& s, const uint8_t* marks, const int32_t* list, int n,
                        int64_t most, int64_t* out, cudaStream_t stream);
// All of `list`: first the marked elements, then the others, both in their order.
cudaError_t put_marked_first(const Selection& s, const uint8_t* marks, const int32_t* list, int n,
                             int32_t* out, cudaStream_t stream);

}  // namespace tinyops
