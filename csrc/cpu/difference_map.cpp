#include "difference_map.h"

#include "../ops/difference_map_check.h"
#include "maps.h"
#include "parallel.h"

namespace tinyops::difference_map {
namespace {

template <typename A>
Isa isa_of(const Problem& p) {
  return cpu_isa_for_line(p.width, sizeof(A));
}

Tensor difference_map_cpu(const Tensor& reconstruction, const Tensor& image,
                          const OptionalTensor& valid) {
  const Problem p = check_forward(reconstruction, image, valid);
  const ForwardTensors t(p, reconstruction, image, valid);
  if (p.images * p.plane() == 0) return t.out;
  for_float_dtype<half_t, bfloat16_t>(reconstruction.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const ForwardArgs<T> args = t.args<T>();
    const Isa isa = isa_of<acc_t<T>>(p);
    parallel_units<char>(
        p.images * p.height, p.width * p.channels, 0, [&](int64_t begin, int64_t end, char*) {
          for_isa(isa, [&](auto chosen) { forward<chosen.value, T>(p, args, begin, end); });
        });
  });
  return t.out;
}

Tensor difference_map_backward_cpu(const Tensor& grad, const Tensor& reconstruction,
                                   const Tensor& image, const OptionalTensor& valid) {
  const Problem p = check_backward(grad, reconstruction, image, valid);
  const BackwardTensors t(p, grad, reconstruction, image, valid);
  const int64_t elements = p.images * p.channels * p.plane();
  if (elements == 0) return t.d_reconstruction;
  for_float_dtype<half_t, bfloat16_t>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardArgs<T> args = t.args<T>();
    const Isa isa = isa_of<acc_t<T>>(p);
    const bool stream = elements * int64_t{sizeof(T)} >= kStreamBytes;
    parallel_units<char>(
        p.images * p.height, p.width * p.channels, 0, [&](int64_t begin, int64_t end, char*) {
          for_isa(isa,
                  [&](auto chosen) { backward<chosen.value, T>(p, args, stream, begin, end); });
        });
  });
  return t.d_reconstruction;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("difference_map", TORCH_BOX(&difference_map_cpu));
  m.impl("_difference_map_backward", TORCH_BOX(&difference_map_backward_cpu));
}

}  // namespace tinyops::difference_map
