// The argument checks of avg_max_pool, said once for every backend. The messages are those of
// tinyops/ops/avg_max_pool.py, which guards fake tensors and Triton.
#pragma once
#include "maps_check.h"
#include "valid_check.h"
// after the others, which pin the ABI
#include <tuple>

#include "avg_max_pool.h"

namespace tinyops::avg_max_pool {

inline constexpr char kOp[] = "avg_max_pool", kName[] = "avg_max_pool: ";

inline void check_pool_size(int64_t height, int64_t width) {
  constexpr int64_t kMost = int64_t{1} << 31;
  check(height >= 1 && height < kMost && width >= 1 && width < kMost, kName,
        "height and width must be at least 1 and below 2^31, got ", height, "x", width);
}

inline Problem check_forward(const Tensor& features, const OptionalTensor& valid) {
  check_map(kOp, "features", features);
  check_pool_size(features.size(2), features.size(3));
  check_valid(kOp, valid, "features", features, features.size(0));
  return {features.size(0), features.size(1), static_cast<int32_t>(features.size(2)),
          static_cast<int32_t>(features.size(3)),
          layout_of(features) == MemoryFormat::ChannelsLast};
}

inline Problem check_backward(const Tensor& d_mean, const Tensor& d_max, const Tensor& index,
                              const OptionalTensor& valid, int64_t height, int64_t width,
                              bool channels_last) {
  check_map(kOp, "d_mean", d_mean);
  check_pool_size(height, width);
  const int64_t n = d_mean.size(0), c = d_mean.size(1);
  check_map_size(kOp, "d_mean", d_mean, {n, c, 1, 1});
  check_map_like(kOp, "d_max", d_max, "d_mean", d_mean);
  check_map_size(kOp, "d_max", d_max, {n, c, 1, 1});
  check_rank(kOp, "index", index);
  check(index.device() == d_mean.device(), kName, "index must be on ", device_text(d_mean),
        " like d_mean, got ", device_text(index));
  check(index.scalar_type() == ScalarType::Long, kName, "index must be int64, got ",
        dtype_text(index.scalar_type()));
  check_map_size(kOp, "index", index, {n, c, 1, 1});
  check_valid(kOp, valid, "d_mean", d_mean, n);
  return {n, c, static_cast<int32_t>(height), static_cast<int32_t>(width), channels_last};
}

inline MemoryFormat format_of(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Owns the dense inputs and the fresh outputs of one call of the forward.
struct ForwardTensors {
  Tensor features;
  OptionalTensor valid;
  Tensor mean, max, index;

  ForwardTensors(const Problem& p, const Tensor& features_in, const OptionalTensor& valid_in)
      : features(to_layout(features_in, format_of(p))),
        valid(to_layout(valid_in, MemoryFormat::Contiguous)),
        mean(empty_like_sized(features, {p.images, p.channels, 1, 1})),
        max(empty_like_sized(features, {p.images, p.channels, 1, 1})),
        index(empty_on(features, ScalarType::Long, {p.images, p.channels, 1, 1})) {}

  std::tuple<Tensor, Tensor, Tensor> outputs() const { return {mean, max, index}; }
  template <typename T>
  ForwardArgs<T> args() const {
    return {data<T>(features), data<int64_t>(valid), mutable_data<T>(mean), mutable_data<T>(max),
            mutable_data<int64_t>(index)};
  }
};

struct BackwardTensors {
  Tensor d_mean, d_max, index;
  OptionalTensor valid;
  Tensor d_features;

  BackwardTensors(const Problem& p, const Tensor& d_mean_in, const Tensor& d_max_in,
                  const Tensor& index_in, const OptionalTensor& valid_in)
      : d_mean(to_layout(d_mean_in, MemoryFormat::Contiguous)),
        d_max(to_layout(d_max_in, MemoryFormat::Contiguous)),
        index(to_layout(index_in, MemoryFormat::Contiguous)),
        valid(to_layout(valid_in, MemoryFormat::Contiguous)),
        d_features(
            empty_like_sized(d_mean, {p.images, p.channels, p.height, p.width}, format_of(p))) {}

  template <typename T>
  BackwardArgs<T> args() const {
    return {data<T>(d_mean), data<T>(d_max), data<int64_t>(index), data<int64_t>(valid),
            mutable_data<T>(d_features)};
  }
};

}  // namespace tinyops::avg_max_pool
