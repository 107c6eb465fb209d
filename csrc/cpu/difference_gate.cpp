#include "difference_gate.h"

#include "../ops/difference_gate_check.h"
#include "maps.h"
#include "parallel.h"

namespace tinyops::difference_gate {
namespace {

// Most cells of a block in NCHW: its factors and sums stay in the L2 cache while channels pass by.
// Smaller blocks would fit into L1, but memory is fastest when planes are walked from end to end.
constexpr int64_t kBlockCells = 65536;

// Cuts each image into blocks of whole runs, at least `blocks` of them if it has as many runs.
Cut cut_into(const Problem& p, int64_t blocks) {
  const int64_t most = ceil_div(p.cells(), std::max<int64_t>(1, blocks));
  const int64_t runs = std::max<int64_t>(1, std::min(kBlockCells, most) / kRun);
  return {runs * kRun, ceil_div(p.cells(), runs * kRun)};
}

template <typename A>
Isa isa_of(const Problem& p) {
  return cpu_isa_for_line(p.channels_last ? p.channels : p.cells(), sizeof(A));
}

template <typename A>
constexpr ScalarType kScalarType =
    std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

// 1 + mask of every cell, [N, h, w] in the accumulation type of T.
template <typename T>
Tensor factors_of(const Problem& p, const Tensor& difference, const Tensor& threshold) {
  using A = acc_t<T>;
  const Tensor factors = empty_on(difference, kScalarType<A>, {p.images, p.height, p.width});
  for_map_dtype<T>(difference.scalar_type(), [&](auto zero) {
    using D = decltype(zero);
    const int64_t pixels = p.resize == Resize::kNearest ? p.width : p.map_pixels() / p.height;
    parallel_units<acc_t<D>>(
        p.images * p.height, pixels, p.resize == Resize::kNearest ? 0 : p.map_width(),
        [&](int64_t begin, int64_t end, acc_t<D>* line) {
          for_isa(cpu_isa(), [&](auto chosen) {
            fill_factors<chosen.value, D, A>(p, data<D>(difference), data<D>(threshold),
                                             mutable_data<A>(factors), begin, end, line);
          });
        });
  });
  return factors;
}

Tensor difference_gate_cpu(const Tensor& features, const Tensor& channel_weight,
                           const Tensor& difference, const Tensor& threshold, int64_t resize,
                           int64_t ste) {
  const Problem p = check_forward(features, channel_weight, difference, threshold, resize, ste);
  const ForwardTensors t(p, features, channel_weight, difference);
  const int64_t elements = p.images * p.channels * p.cells();
  if (elements == 0) return t.out;
  for_float_dtype<half_t, bfloat16_t>(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Tensor factors = factors_of<T>(p, t.difference, threshold);
    const ForwardArgs<T> args{data<T>(t.features), data<T>(t.channel_weight),
                              data<acc_t<T>>(factors), mutable_data<T>(t.out)};
    const int64_t threads = torch::stable::get_num_threads();
    const Cut cut = cut_into(p, p.channels_last ? 4 * threads : 1);
    const int64_t units = p.images * cut.per_image * (p.channels_last ? 1 : p.channels);
    const bool stream = elements * int64_t{sizeof(T)} >= kStreamBytes;
    const Isa isa = isa_of<acc_t<T>>(p);
    parallel_units<char>(units, elements / units, 0, [&](int64_t begin, int64_t end, char*) {
      for_isa(isa,
              [&](auto chosen) { forward<chosen.value, T>(p, cut, args, stream, begin, end); });
    });
  });
  return t.out;
}

// The gradients of the map from the sums over channels.
template <typename D, typename A>
void spread_sums(const Problem& p, const Needs& needs, const BackwardTensors& t,
                 const Tensor& threshold, const Tensor& sums) {
  const int64_t rows = p.images * p.height;
  const Tensor totals = empty_on(sums, ScalarType::Double, {rows});
  D* d_difference = needs.difference ? mutable_data<D>(t.d_difference) : nullptr;
  parallel_units<char>(rows, p.map_pixels() / p.height, 0, [&](int64_t begin, int64_t end, char*) {
    for_isa(cpu_isa(), [&](auto chosen) {
      spread<chosen.value, D, A>(p, data<D>(t.difference), data<D>(threshold), data<A>(sums),
                                 d_difference, mutable_data<double>(totals), begin, end);
    });
  });
  if (needs.threshold)
    for_isa(cpu_isa(), [&](auto chosen) {
      finish_threshold<chosen.value, D>(data<double>(totals), rows, mutable_data<D>(t.d_threshold));
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> difference_gate_backward_cpu(
    const Tensor& grad, const Tensor& features, const Tensor& channel_weight,
    const Tensor& difference, const Tensor& threshold, int64_t resize, bool need_features,
    bool need_channel_weight, bool need_difference, bool need_threshold) {
  const Problem p = check_backward(grad, features, channel_weight, difference, threshold, resize);
  const Needs needs{need_features, need_channel_weight, need_difference, need_threshold};
  const BackwardTensors t(p, needs, grad, features, channel_weight, difference, threshold);
  const int64_t elements = p.images * p.channels * p.cells();
  if (elements == 0) {
    t.zero();
    return t.outputs();
  }
  for_float_dtype<half_t, bfloat16_t>(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const Tensor factors = factors_of<T>(p, t.difference, threshold);
    const int64_t runs = ceil_div(p.cells(), kRun);
    const Tensor parts =
        empty_on(grad, kScalarType<A>, {needs.channel_weight ? p.images * runs * p.channels : 0});
    const Tensor sums = empty_on(grad, kScalarType<A>, {needs.mask() ? p.images * p.cells() : 0});
    const BackwardArgs<T> args{data<T>(t.grad),
                               data<T>(t.features),
                               data<T>(t.channel_weight),
                               data<A>(factors),
                               needs.features ? mutable_data<T>(t.d_features) : nullptr,
                               needs.channel_weight ? mutable_data<A>(parts) : nullptr,
                               needs.mask() ? mutable_data<A>(sums) : nullptr};
    const int64_t threads = torch::stable::get_num_threads();
    const Cut cut = cut_into(p, threads == 1 ? 1 : ceil_div(4 * threads, p.images));
    const int64_t units = p.images * cut.per_image;
    const bool stream = elements * int64_t{sizeof(T)} >= kStreamBytes;
    const Isa isa = isa_of<A>(p);
    parallel_units<A>(units, elements / units, p.channels_last ? p.channels : 0,
                      [&](int64_t begin, int64_t end, A* scratch) {
                        for_isa(isa, [&](auto chosen) {
                          backward<chosen.value, T>(p, cut, args, stream, begin, end, scratch);
                        });
                      });
    if (needs.channel_weight)
      for_isa(isa, [&](auto chosen) {
        add_parts<chosen.value, T>(p, args.parts, mutable_data<T>(t.d_channel_weight), 0, p.images);
      });
    if (needs.mask())
      for_map_dtype<T>(difference.scalar_type(), [&](auto map_zero) {
        spread_sums<decltype(map_zero), A>(p, needs, t, threshold, sums);
      });
  });
  return t.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("difference_gate", TORCH_BOX(&difference_gate_cpu));
  m.impl("_difference_gate_backward", TORCH_BOX(&difference_gate_backward_cpu));
}

}  // namespace tinyops::difference_gate
