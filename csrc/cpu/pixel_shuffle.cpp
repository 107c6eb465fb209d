#include "pixel_shuffle.h"

#include <algorithm>

#include "../ops/pixel_shuffle_check.h"
#include "maps.h"

namespace tinyops::pixel_shuffle {
namespace {

template <typename T>
Isa isa_of(const Problem& p) {
  return cpu_isa_for_line(p.channels_last ? p.channels : p.width, sizeof(acc_t<T>));
}

// body(isa, begin, end) over the units of a map of `channels` channels.
template <typename T, typename F>
void parallel_units(const Problem& p, int64_t channels, const F& body) {
  const int64_t units = p.images * p.height * (p.channels_last ? 1 : channels);
  const int64_t unit_work = p.images * channels * p.wide_plane() / units;
  const Isa isa = isa_of<T>(p);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / unit_work),
                              [&](int64_t begin, int64_t end) {
                                for_isa(isa, [&](auto chosen) { body(chosen, begin, end); });
                              });
}

template <Join kJoin>
Tensor forward_cpu(const Tensor& content, const Tensor& other, int64_t upscale,
                   double negative_slope, int64_t order) {
  const Problem p = check_forward(kJoin, content, other, upscale, negative_slope, order);
  const ForwardTensors t(kJoin, p, content, other);
  const int64_t numel = p.images * p.outer_channels * p.wide_plane();
  if (numel == 0) return t.out;
  for_float_dtype<half_t, bfloat16_t>(content.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const ForwardArgs<T> args = t.args<T>();
    const bool stream = numel * int64_t{sizeof(T)} >= kStreamBytes;
    parallel_units<T>(p, p.outer_channels, [&](auto isa, int64_t begin, int64_t end) {
      forward<isa.value, T>(p, args, stream, begin, end);
    });
  });
  return t.out;
}

Tensor backward_cpu(const Tensor& grad, const OptionalTensor& content, int64_t channels,
                    int64_t upscale, double negative_slope, int64_t order) {
  const Problem p = check_backward(grad, content, channels, upscale, negative_slope, order);
  const BackwardTensors t(p, grad, content);
  if (p.numel() == 0) return t.d_content;
  for_float_dtype<half_t, bfloat16_t>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardArgs<T> args = t.args<T>();
    const bool stream = p.numel() * int64_t{sizeof(T)} >= kStreamBytes;
    parallel_units<T>(p, p.channels, [&](auto isa, int64_t begin, int64_t end) {
      backward<isa.value, T>(p, args, stream, begin, end);
    });
  });
  return t.d_content;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("pixel_shuffle_concat", TORCH_BOX(&forward_cpu<Join::kConcat>));
  m.impl("pixel_shuffle_add", TORCH_BOX(&forward_cpu<Join::kAdd>));
  m.impl("_pixel_shuffle_backward", TORCH_BOX(&backward_cpu));
}

}  // namespace tinyops::pixel_shuffle
