// The value checks of box operators as their glue calls them: queue any number, then ask once.
#pragma once
#include "torch_cuda.h"
// after torch_cuda.h, which pins the ABI
#include <algorithm>
#include <vector>

#include "../ops/boxes_check.h"
#include "boxes.h"

namespace tinyops {

class ValueChecks {
 public:
  ValueChecks(const char* op, cudaStream_t stream) : op_(op), stream_(stream) {}

  // Contiguous, of a compute type; kept alive until ask().
  void boxes(const char* name, const Tensor& boxes) { queue(name, boxes, true); }
  void no_nan(const char* name, const Tensor& values) { queue(name, values, false); }

  // Throws for the first bad element. The only host synchronisation.
  void ask() {
    if (items_.empty()) return;
    const int64_t count = static_cast<int64_t>(items_.size());
    const Tensor found = empty_on(items_[0].tensor, ScalarType::Long, {count});
    auto* result = mutable_data<unsigned long long>(found);
    check_cuda(cudaMemsetAsync(result, 0xff, count * sizeof(*result), stream_), op_);
    for (const Item& item : items_) run(item, result++);
    std::vector<int64_t> first(items_.size());
    copy_to_host(first.data(), found.const_data_ptr(), count * sizeof(int64_t));
    for (size_t k = 0; k < items_.size(); ++k)
      if (first[k] >= 0) refuse(items_[k], first[k]);
  }

 private:
  struct Item {
    const char* name;
    Tensor tensor;
    bool is_boxes;
  };

  void queue(const char* name, const Tensor& t, bool is_boxes) {
    if (t.numel() > 0) items_.push_back({name, t, is_boxes});
  }
  void run(const Item& item, unsigned long long* result) const {
    for_compute_dtype(item.tensor.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const int64_t n = item.tensor.size(0);
      check_cuda(item.is_boxes ? first_bad_box_cuda(data<Box<T>>(item.tensor), n, result, stream_)
                               : first_nan_cuda(data<T>(item.tensor), n, result, stream_),
                 op_);
    });
  }
  void refuse(const Item& item, int64_t index) const {
    if (!item.is_boxes) refuse_nan(op_, item.name, index);
    for_compute_dtype(item.tensor.scalar_type(), [&](auto zero) {
      Box<decltype(zero)> box;
      copy_to_host(&box, data<Box<decltype(zero)>>(item.tensor) + index, sizeof(box));
      refuse_box(op_, item.name, box, index);
    });
  }
  void copy_to_host(void* to, const void* from, size_t bytes) const {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), op_);
    check_cuda(cudaStreamSynchronize(stream_), op_);
  }

  const char* op_;
  cudaStream_t stream_;
  std::vector<Item> items_;
};

}  // namespace tinyops
