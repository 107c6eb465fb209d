// The glue that nms and stitch_tiles share: rank, suppress, and the kept indices as tensors.
#pragma once
#include "torch_cuda.h"
// after torch_cuda.h, which pins the ABI
#include <tuple>

#include "../ops/boxes_check.h"
#include "greedy.h"
#include "sort.h"

namespace tinyops {

inline Tensor scratch_on(const Tensor& like, int64_t bytes) {
  return empty_on(like, ScalarType::Byte, {bytes});
}

// The kept ones as [kept] int64; asks the GPU how many they are.
template <typename T>
Tensor kept_exactly(const char* op, const greedy::Memory<T>& memory, const int32_t* order, int n,
                    const Tensor& like, cudaStream_t stream) {
  int32_t kept = 0;
  check_cuda(count_marked(memory.selection, memory.status, n, n, nullptr, stream), op);
  check_cuda(cudaMemcpyAsync(&kept, memory.selection.total(n), sizeof(kept), cudaMemcpyDeviceToHost,
                             stream),
             op);
  check_cuda(cudaStreamSynchronize(stream), op);
  const Tensor keep = empty_on(like, ScalarType::Long, {kept});
  check_cuda(take_marked(memory.selection, memory.status, order, n, kept,
                         mutable_data<int64_t>(keep), stream),
             op);
  return keep;
}

struct Padded {
  Tensor keep;   // [max_outputs] int64
  Tensor count;  // int64

  // What there is without boxes: -1 and 0.
  Padded(const char* op, const Tensor& like, int64_t max_outputs, cudaStream_t stream)
      : keep(empty_on(like, ScalarType::Long, {max_outputs})),
        count(empty_on(like, ScalarType::Long, {})) {
    if (max_outputs > 0)
      check_cuda(cudaMemsetAsync(mutable_data<int64_t>(keep), 0xff,
                                 static_cast<size_t>(max_outputs) * sizeof(int64_t), stream),
                 op);
    check_cuda(cudaMemsetAsync(mutable_data<int64_t>(count), 0, sizeof(int64_t), stream), op);
  }

  template <typename T>
  void fill(const char* op, const greedy::Memory<T>& memory, const int32_t* order, int n,
            cudaStream_t stream) const {
    const int64_t most = keep.size(0);
    check_cuda(count_marked(memory.selection, memory.status, n, most, mutable_data<int64_t>(count),
                            stream),
               op);
    check_cuda(take_marked(memory.selection, memory.status, order, n, most,
                           mutable_data<int64_t>(keep), stream),
               op);
  }
  std::tuple<Tensor, Tensor> outputs() const { return {keep, count}; }
};

// Bytes that rank_scores() wants for scores of a compute type.
inline size_t rank_scratch(const char* op, const Tensor& scores, cudaStream_t stream) {
  size_t bytes = 0;
  for_compute_dtype(scores.scalar_type(), [&](auto zero) {
    check_cuda(rank_scores<decltype(zero)>(nullptr, bytes, nullptr,
                                           static_cast<int>(scores.size(0)), nullptr, stream),
               op);
  });
  return bytes;
}
inline void rank(const char* op, const Tensor& scores, void* scratch, size_t bytes, int32_t* order,
                 cudaStream_t stream) {
  for_compute_dtype(scores.scalar_type(), [&](auto zero) {
    check_cuda(rank_scores(scratch, bytes, data<decltype(zero)>(scores),
                           static_cast<int>(scores.size(0)), order, stream),
               op);
  });
}

}  // namespace tinyops
