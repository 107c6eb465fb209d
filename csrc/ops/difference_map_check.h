// The argument checks of difference_map, said once for every backend. The messages are those of
// `check_arguments` in tinyops/ops/difference_map.py, which guards fake tensors and Triton.
#pragma once
#include "maps_check.h"
// after maps_check.h, which pins the ABI
#include "difference_map.h"
#include "valid_check.h"

namespace tinyops::difference_map {

inline constexpr char kOp[] = "difference_map", kName[] = "difference_map: ";

// Checks the tensors of the forward and gives the sizes of the problem in the layout of the
// reconstruction.
inline Problem check_forward(const Tensor& reconstruction, const Tensor& image,
                             const OptionalTensor& valid) {
  check_map(kOp, "reconstruction", reconstruction);
  check_map_like(kOp, "image", image, "reconstruction", reconstruction);
  const int64_t n = reconstruction.size(0), c = reconstruction.size(1);
  const int64_t h = reconstruction.size(2), w = reconstruction.size(3);
  check_map_size(kOp, "image", image, {n, c, h, w});
  for (const int64_t size : {h, w})
    check(size < (int64_t{1} << 31), kName, "height and width must be below 2^31, got ", size);
  check_valid(kOp, valid, "reconstruction", reconstruction, n);
  return {n, c, static_cast<int32_t>(h), static_cast<int32_t>(w),
          layout_of(reconstruction) == MemoryFormat::ChannelsLast};
}

inline Problem check_backward(const Tensor& grad, const Tensor& reconstruction, const Tensor& image,
                              const OptionalTensor& valid) {
  const Problem p = check_forward(reconstruction, image, valid);
  check_map_like(kOp, "grad", grad, "reconstruction", reconstruction);
  check_map_size(kOp, "grad", grad, {p.images, 1, p.height, p.width});
  return p;
}

inline MemoryFormat format_of(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Owns the dense inputs and the fresh output of one call of the forward.
struct ForwardTensors {
  Tensor reconstruction, image;
  OptionalTensor valid;
  Tensor out;

  ForwardTensors(const Problem& p, const Tensor& reconstruction_in, const Tensor& image_in,
                 const OptionalTensor& valid_in)
      : reconstruction(to_layout(reconstruction_in, format_of(p))),
        image(to_layout(image_in, format_of(p))),
        valid(to_layout(valid_in, MemoryFormat::Contiguous)),
        out(empty_like_sized(reconstruction_in, {p.images, 1, p.height, p.width})) {}

  template <typename T>
  ForwardArgs<T> args() const {
    return {data<T>(reconstruction), data<T>(image), data<int64_t>(valid), mutable_data<T>(out)};
  }
};

// Owns the dense inputs and the fresh output of one call of the backward.
struct BackwardTensors {
  Tensor grad, reconstruction, image;
  OptionalTensor valid;
  Tensor d_reconstruction;

  BackwardTensors(const Problem& p, const Tensor& grad_in, const Tensor& reconstruction_in,
                  const Tensor& image_in, const OptionalTensor& valid_in)
      : grad(to_layout(grad_in, MemoryFormat::Contiguous)),
        reconstruction(to_layout(reconstruction_in, format_of(p))),
        image(to_layout(image_in, format_of(p))),
        valid(to_layout(valid_in, MemoryFormat::Contiguous)),
        d_reconstruction(empty_like_sized(
            reconstruction_in, {p.images, p.channels, p.height, p.width}, format_of(p))) {}

  template <typename T>
  BackwardArgs<T> args() const {
    return {data<T>(grad), data<T>(reconstruction), data<T>(image), data<int64_t>(valid),
            mutable_data<T>(d_reconstruction)};
  }
};

}  // namespace tinyops::difference_map
