// Stream compaction on the GPU: pick the marked ones of a list, in its order, in two steps, so that
// the length can be learnt in between.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "arena.h"

namespace tinyops {

struct Selection {
  Selection(Arena& arena, int64_t n);
  int32_t* before;  // [chunks + 1] marked ones before each chunk; the last is their total
  int chunks;

  const int32_t* total() const { return before + chunks; }
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
