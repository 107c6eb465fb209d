#include "torch_cuda.h"

// after torch_cuda.h, which pins the ABI
#include "../ops/difference_gate_check.h"
#include "difference_gate.h"

namespace tinyops::difference_gate {
namespace {

// Offsets inside a plane are 32-bit on the GPU.
void check_plane(const Problem& p) {
  check(p.map_pixels() < (int64_t{1} << 31), kName,
        "on a GPU difference must have fewer than 2^31 pixels an image, got ",
        int64_t{p.height} * p.block_rows, "x", p.map_width());
}

template <typename A>
constexpr ScalarType kScalarType =
    std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

Tensor difference_gate_cuda(const Tensor& features, const Tensor& channel_weight,
                            const Tensor& difference, const Tensor& threshold, int64_t resize,
                            int64_t ste) {
  const Problem p = check_forward(features, channel_weight, difference, threshold, resize, ste);
  check_plane(p);
  const DeviceGuard guard(features);
  const ForwardTensors t(p, features, channel_weight, difference);
  if (p.images * p.channels * p.cells() == 0) return t.out;
  for_float_dtype<__half, __nv_bfloat16>(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_map_dtype<T>(difference.scalar_type(), [&](auto map_zero) {
      using D = decltype(map_zero);
      const ForwardArgs<T, D> args{data<T>(t.features), data<T>(t.channel_weight),
                                   data<D>(t.difference), data<D>(threshold),
                                   mutable_data<T>(t.out)};
      check_cuda(forward_cuda<T, D>(p, args, current_stream(features)), kOp);
    });
  });
  return t.out;
}

template <typename T, typename D>
void run_backward(const Problem& p, const Needs& needs, const BackwardTensors& t,
                  const Tensor& threshold) {
  using A = acc_t<T>;
  BackwardArgs<T, D> args{data<T>(t.grad),
                          data<T>(t.features),
                          data<T>(t.channel_weight),
                          data<D>(t.difference),
                          data<D>(threshold),
                          needs.features ? mutable_data<T>(t.d_features) : nullptr,
                          needs.channel_weight ? mutable_data<T>(t.d_channel_weight) : nullptr,
                          needs.difference ? mutable_data<D>(t.d_difference) : nullptr,
                          needs.threshold ? mutable_data<D>(t.d_threshold) : nullptr,
                          nullptr,
                          nullptr,
                          nullptr};
  const int64_t parts = needs.channel_weight ? p.images * blocks_of(p, args) * p.channels : 0;
  const Tensor part_memory = empty_on(t.grad, kScalarType<A>, {parts});
  const Tensor sums = empty_on(t.grad, kScalarType<A>, {needs.mask() ? p.images * p.cells() : 0});
  const Tensor totals =
      empty_on(t.grad, ScalarType::Double, {needs.mask() ? p.images * map_blocks_of(p) : 0});
  if (needs.channel_weight) args.parts = mutable_data<A>(part_memory);
  if (needs.mask()) {
    args.sums = mutable_data<A>(sums);
    args.totals = mutable_data<double>(totals);
  }
  check_cuda(backward_cuda<T, D>(p, args, current_stream(t.grad)), "_difference_gate_backward");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> difference_gate_backward_cuda(
    const Tensor& grad, const Tensor& features, const Tensor& channel_weight,
    const Tensor& difference, const Tensor& threshold, int64_t resize, bool need_features,
    bool need_channel_weight, bool need_difference, bool need_threshold) {
  const Problem p = check_backward(grad, features, channel_weight, difference, threshold, resize);
  check_plane(p);
  const Needs needs{need_features, need_channel_weight, need_difference, need_threshold};
  const DeviceGuard guard(features);
  const BackwardTensors t(p, needs, grad, features, channel_weight, difference, threshold);
  if (p.images * p.channels * p.cells() == 0) {
    t.zero();
    return t.outputs();
  }
  for_float_dtype<__half, __nv_bfloat16>(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_map_dtype<T>(difference.scalar_type(), [&](auto map_zero) {
      run_backward<T, decltype(map_zero)>(p, needs, t, threshold);
    });
  });
  return t.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("difference_gate", TORCH_BOX(&difference_gate_cuda));
  m.impl("_difference_gate_backward", TORCH_BOX(&difference_gate_backward_cuda));
}

}  // namespace tinyops::difference_gate
