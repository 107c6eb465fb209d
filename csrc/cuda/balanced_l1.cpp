#include "torch_cuda.h"
// after torch_cuda.h, which pins the ABI
#include "../ops/balanced_l1_check.h"
#include "balanced_l1.h"

namespace tinyops::balanced_l1 {
namespace {

// Offsets inside a plane, in NHWC inside a row, are 32-bit on the GPU.
void check_plane(const Problem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - (int64_t{1} << 24);  // with room for a grid
  const bool fits = p.plane() <= kMost &&
                    (!p.channels_last || p.width <= kMost / std::max<int64_t>(1, p.channels));
  check(fits, kName, "on a GPU a plane must have fewer than 2^31 cells, got ", p.height, "x",
        p.width, " of ", p.channels, " channels");
}

Tensor paint(const Problem& p, const Inputs& in, cudaStream_t stream) {
  const Tensor mask = empty_on(in.prediction, ScalarType::Byte, {p.cells()});
  for_compute_dtype(in.boxes.scalar_type(), [&](auto zero) {
    check_cuda(paint_cuda(p, data<Box<decltype(zero)>>(in.boxes), data<int64_t>(in.image_ids),
                          data<int64_t>(in.valid), mutable_data<uint8_t>(mask), stream),
               kOp);
  });
  return mask;
}

std::tuple<Tensor, Tensor, Tensor> balanced_l1_sums_cuda(const Tensor& prediction,
                                                         const Tensor& target, const Tensor& boxes,
                                                         const Tensor& image_ids,
                                                         const OptionalTensor& valid,
                                                         double scale) {
  const Problem p = check_forward(prediction, target, boxes, image_ids, valid, scale);
  check_plane(p);
  const DeviceGuard guard(prediction);
  const cudaStream_t stream = current_stream(prediction);
  const Inputs in(p, prediction, target, boxes, image_ids, valid);
  const Sums out(prediction);
  const Tensor mask = paint(p, in, stream);
  for_float_dtype<__half, __nv_bfloat16>(prediction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const ForwardArgs<T> args{data<T>(in.prediction), data<T>(in.target), data<uint8_t>(mask)};
    const int64_t blocks = blocks_of(p, args);
    const Tensor sums = empty_on(prediction, ScalarType::Double, {2, blocks});
    const Tensor counts = empty_on(prediction, ScalarType::Int, {blocks});
    double* const memory = mutable_data<double>(sums);
    const Partials partials{memory, memory + blocks, mutable_data<int32_t>(counts)};
    const Results<A> results{mutable_data<A>(out.total), mutable_data<A>(out.positive),
                             mutable_data<int64_t>(out.cells)};
    check_cuda(sums_cuda(p, args, partials, results, stream), kOp);
  });
  return out.outputs();
}

std::tuple<Tensor, Tensor> balanced_l1_sums_backward_cuda(
    const Tensor& d_total, const Tensor& d_positive, const Tensor& prediction, const Tensor& target,
    const Tensor& boxes, const Tensor& image_ids, const OptionalTensor& valid, double scale,
    bool need_prediction, bool need_target) {
  const Problem p = check_forward(prediction, target, boxes, image_ids, valid, scale);
  check_sum_gradient("d_total", d_total, prediction);
  check_sum_gradient("d_positive", d_positive, prediction);
  check_plane(p);
  const DeviceGuard guard(prediction);
  const cudaStream_t stream = current_stream(prediction);
  const Inputs in(p, prediction, target, boxes, image_ids, valid);
  const Gradients out(p, in.prediction, need_prediction, need_target);
  if (p.numel() == 0 || !(need_prediction || need_target)) return out.outputs();
  const Tensor mask = paint(p, in, stream);
  for_float_dtype<__half, __nv_bfloat16>(prediction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const BackwardArgs<T> args{data<T>(in.prediction),
                               data<T>(in.target),
                               data<uint8_t>(mask),
                               data<A>(d_total),
                               data<A>(d_positive),
                               need_prediction ? mutable_data<T>(out.prediction) : nullptr,
                               need_target ? mutable_data<T>(out.target) : nullptr};
    check_cuda(backward_cuda(p, args, stream), "_balanced_l1_sums_backward");
  });
  return out.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("balanced_l1_sums", TORCH_BOX(&balanced_l1_sums_cuda));
  m.impl("_balanced_l1_sums_backward", TORCH_BOX(&balanced_l1_sums_backward_cuda));
}

}  // namespace tinyops::balanced_l1
