// The argument checks of gated_upsample_add, said once for every backend. The messages are those of
// `check_arguments` in tinyops/ops/gated_upsample_add.py, which guards fake tensors and Triton.
#pragma once
#include "maps_check.h"
// after maps_check.h, which pins the ABI
#include <tuple>
#include <utility>

#include "gated_upsample_add.h"

namespace tinyops::gated_upsample_add {

inline constexpr char kOp[] = "gated_upsample_add", kName[] = "gated_upsample_add: ";

inline void check_pixels(int64_t out_h, int64_t out_w, int64_t in_h, int64_t in_w) {
  for (const int64_t size : {out_h, out_w, in_h, in_w})
    check(size >= 0 && size < (int64_t{1} << 31), kName,
          "height and width must be at least 0 and below 2^31, got ", size);
  check((in_h > 0 || out_h == 0) && (in_w > 0 || out_w == 0), kName,
        "high must have pixels to give to low of ", out_h, "x", out_w, ", got ", in_h, "x", in_w);
}

inline Mode mode_of(const OptionalTensor& gate_low, const OptionalTensor& gate_high,
                    bool self_gate) {
  check(gate_low.has_value() == gate_high.has_value(), kName, "expected both gates or none, got ",
        gate_low ? "gate_low" : "gate_high", " alone");
  check(gate_low || !self_gate, kName, "self_gate=True needs gate_low and gate_high, got None");
  return !gate_low ? Mode::kPlain : self_gate ? Mode::kSelfGated : Mode::kGated;
}

// Checks the tensors of the forward and gives the sizes of the problem in the layout of low.
inline Problem check_forward(const Tensor& low, const Tensor& high, const OptionalTensor& gate_low,
                             const OptionalTensor& gate_high, bool self_gate) {
  check_map(kOp, "low", low);
  const Mode mode = mode_of(gate_low, gate_high, self_gate);
  check_map_like(kOp, "high", high, "low", low);
  const int64_t n = low.size(0), c = low.size(1), out_h = low.size(2), out_w = low.size(3);
  const int64_t in_h = high.size(2), in_w = high.size(3);
  check(high.size(0) == n && high.size(1) == c, kName, "high must be [", n, ", ", c,
        ", h, w], got ", shape_text(high));
  check_pixels(out_h, out_w, in_h, in_w);
  if (mode != Mode::kPlain) {
    check_map_like(kOp, "gate_low", *gate_low, "low", low);
    check_map_size(kOp, "gate_low", *gate_low, {n, 1, out_h, out_w});
    check_map_like(kOp, "gate_high", *gate_high, "low", low);
    check_map_size(kOp, "gate_high", *gate_high, {n, 1, in_h, in_w});
  }
  return {n, c, {out_h, in_h}, {out_w, in_w}, mode, layout_of(low) == MemoryFormat::ChannelsLast};
}

// The in-place form writes into low: its memory must be dense and nobody else's.
inline void check_in_place(const Tensor& low, const Tensor& high, const OptionalTensor& gate_low,
                           const OptionalTensor& gate_high) {
  check(low.is_contiguous() || is_channels_last(low), kName,
        "low must be contiguous or channels_last to be written in place, got a view of ",
        shape_text(low));
  const auto range = [](const Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    const auto* begin = static_cast<const char*>(t.const_data_ptr());
    return std::pair(begin, begin + (t.numel() ? (last + 1) * t.element_size() : 0));
  };
  const auto [low_begin, low_end] = range(low);
  const auto check_apart = [&](const char* name, const Tensor& t) {
    const auto [begin, end] = range(t);
    check(begin >= low_end || low_begin >= end, kName, name,
          " must not share memory with low, which is written in place");
  };
  check_apart("high", high);
  if (gate_low) check_apart("gate_low", *gate_low);
  if (gate_high) check_apart("gate_high", *gate_high);
}

// Checks the tensors that the backward operator gets and gives the sizes of the problem.
inline Problem check_backward(const Tensor& grad, const OptionalTensor& low,
                              const OptionalTensor& high, const OptionalTensor& gate_low,
                              const OptionalTensor& gate_high, int64_t high_height,
                              int64_t high_width, bool self_gate) {
  check_map(kOp, "grad", grad);
  const Mode mode = mode_of(gate_low, gate_high, self_gate);
  const int64_t n = grad.size(0), c = grad.size(1), out_h = grad.size(2), out_w = grad.size(3);
  check_pixels(out_h, out_w, high_height, high_width);
  check(high.has_value() == (mode != Mode::kPlain), kName,
        "the backward needs high with gates and only then");
  check(low.has_value() == (mode == Mode::kSelfGated), kName,
        "the backward needs low with self_gate=True and only then");
  const auto checked = [&](const char* name, const Tensor& t, std::array<int64_t, 4> size) {
    check_map_like(kOp, name, t, "grad", grad);
    check_map_size(kOp, name, t, size);
  };
  if (high) {
    checked("high", *high, {n, c, high_height, high_width});
    checked("gate_low", *gate_low, {n, 1, out_h, out_w});
    checked("gate_high", *gate_high, {n, 1, high_height, high_width});
  }
  if (low) checked("low", *low, {n, c, out_h, out_w});
  // A gradient that is dense in neither layout (an expanded one, say) is copied to that of high.
  const Tensor& leader = has_layout(grad, layout_of(grad)) || !high ? grad : *high;
  const bool channels_last = layout_of(leader) == MemoryFormat::ChannelsLast;
  return {n, c, {out_h, high_height}, {out_w, high_width}, mode, channels_last};
}

inline MemoryFormat format_of(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Owns the dense inputs of one call of the forward. low and out are dense already.
struct ForwardTensors {
  Tensor low, high, out;
  OptionalTensor gate_low, gate_high;

  ForwardTensors(const Problem& p, const Tensor& low_in, const Tensor& high_in,
                 const OptionalTensor& gate_low_in, const OptionalTensor& gate_high_in,
                 bool in_place)
      : low(in_place ? low_in : to_layout(low_in, format_of(p))),
        high(to_layout(high_in, format_of(p))),
        out(in_place
                ? low_in
                : empty_like_sized(low, {p.images, p.channels, p.y.out, p.x.out}, format_of(p))),
        gate_low(to_layout(gate_low_in, MemoryFormat::Contiguous)),
        gate_high(to_layout(gate_high_in, MemoryFormat::Contiguous)) {}

  template <typename T>
  ForwardArgs<T> args() const {
    return {data<T>(low), data<T>(high), data<T>(gate_low), data<T>(gate_high),
            mutable_data<T>(out)};
  }
};

// Owns the dense inputs and the fresh outputs of one call of the backward.
struct BackwardTensors {
  Tensor grad;
  OptionalTensor low, high, gate_low, gate_high;
  Tensor d_low, d_high, d_gate_low, d_gate_high;

  BackwardTensors(const Problem& p, const Tensor& grad_in, const OptionalTensor& low_in,
                  const OptionalTensor& high_in, const OptionalTensor& gate_low_in,
                  const OptionalTensor& gate_high_in)
      : grad(to_layout(grad_in, format_of(p))),
        low(to_layout(low_in, format_of(p))),
        high(to_layout(high_in, format_of(p))),
        gate_low(to_layout(gate_low_in, MemoryFormat::Contiguous)),
        gate_high(to_layout(gate_high_in, MemoryFormat::Contiguous)),
        d_low(like(low, format_of(p))),
        d_high(empty_like_sized(grad, {p.images, p.channels, p.y.in, p.x.in}, format_of(p))),
        d_gate_low(like(gate_low, MemoryFormat::Contiguous)),
        d_gate_high(like(gate_high, MemoryFormat::Contiguous)) {}

  std::tuple<Tensor, Tensor, Tensor, Tensor> outputs() const {
    return {d_low, d_high, d_gate_low, d_gate_high};
  }
  template <typename T>
  BackwardArgs<T> args() const {
    return {data<T>(grad),
            data<T>(low),
            data<T>(high),
            data<T>(gate_low),
            data<T>(gate_high),
            mutable_data<T>(d_low),
            mutable_data<T>(d_high),
            mutable_data<T>(d_gate_low),
            mutable_data<T>(d_gate_high)};
  }

 private:
  // A result that the mode does not have is empty.
  Tensor like(const OptionalTensor& t, MemoryFormat format) const {
    if (!t) return empty_like_sized(grad, {0});
    return empty_like_sized(*t, {t->size(0), t->size(1), t->size(2), t->size(3)}, format);
  }
};

}  // namespace tinyops::gated_upsample_add
