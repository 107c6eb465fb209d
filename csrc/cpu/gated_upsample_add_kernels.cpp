// The forward of gated_upsample_add on the CPU. Memory-bound: low, high and out move once.
#include "gated_upsample_add_rows.h"

namespace tinyops::gated_upsample_add {
namespace {

// One vector or element of the output, with `up` the upsampled high and `x` the column.
template <Mode kMode, bool kStream, typename Lanes, typename T, typename A, typename V>
void forward_point(Lanes lanes, int64_t x, const T* low, V up, const A* gates, const T* gate_low,
                   T* out) {
  auto v = lanes.load(low + x);
  if constexpr (kMode == Mode::kSelfGated) v = v * (lanes.load(gate_low + x) + A(1));
  if constexpr (kMode != Mode::kPlain) up = up * lanes.load(gates + x);
  lanes.template store<kStream>(out + x, v + up);
}

// A block of kChannels channels whose width doubles: their rows advance together, so that gates are
// fetched once for the group, and high goes from its row to the output in registers.
template <Mode kMode, bool kStream, int kChannels, typename T, typename A>
void forward_double(const Problem& p, const Rows& r, const T* low, const T* high, const A* gates,
                    const T* gate_low, T* out) {
  constexpr int L = kLanes<A>;
  const int64_t width = p.x.out, low_plane = p.low_plane(), high_plane = p.high_plane();
  for (int32_t y = r.begin; y < r.end; ++y, gates += width) {
    const int64_t row = y * width, source_row = int64_t{p.y.source(y)} * p.x.in;
    int64_t j = 0;
    for (; j + L <= p.x.in; j += L) {
      for (int k = 0; k < kChannels; ++k) {
        const int64_t at = row + k * low_plane;
        const auto v = Wide<A>::load(high + source_row + k * high_plane + j);
        forward_point<kMode, kStream>(Wide<A>{}, 2 * j, low + at, repeat_half<0, A>(v), gates,
                                      gate_low + row, out + at);
        forward_point<kMode, kStream>(Wide<A>{}, 2 * j + L, low + at, repeat_half<1, A>(v), gates,
                                      gate_low + row, out + at);
      }
    }
    for (; j < p.x.in; ++j) {
      for (int k = 0; k < kChannels; ++k) {
        const int64_t at = row + k * low_plane;
        const A v = widen(high[source_row + k * high_plane + j]);
        for (int64_t x = 2 * j; x < 2 * j + 2; ++x)
          forward_point<kMode, kStream>(Single<A>{}, x, low + at, v, gates, gate_low + row,
                                        out + at);
      }
    }
  }
}

template <Mode kMode, typename T, typename A>
void forward_any(const Problem& p, const Rows& r, const T* low, const T* high, const A* gates,
                 const T* gate_low, T* out, A* line, A* up) {
  const int64_t width = p.x.out;
  int32_t last = -1;
  for (int32_t y = r.begin; y < r.end; ++y, gates += width) {
    const int32_t i = p.y.source(y);
    if (i != last) upsample_row(p.x, high + int64_t{i} * p.x.in, line, up);
    last = i;
    const int64_t row = y * width;
    for_lanes<A>(width, [&](auto lanes, int64_t x) {
      forward_point<kMode, false>(lanes, x, low + row, lanes.load(up + x), gates, gate_low + row,
                                  out + row);
    });
  }
}

template <Mode kMode, typename T>
void forward_nchw(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& a, bool stream,
                  int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  A *line = scratch, *up = line + whole_lines<A>(p.x.in), *gates = up + whole_lines<A>(p.x.out);
  int64_t gates_of = -1;
  for (int64_t unit = begin; unit < end;) {
    const int64_t block = unit / p.channels, image = block / blocks.per_image;
    const int64_t c = unit % p.channels, plane = image * p.channels + c;
    const Rows r = block_rows(p, blocks, block % blocks.per_image);
    const T* gate_low = kMode == Mode::kPlain ? nullptr : a.gate_low + image * p.low_plane();
    if (kMode != Mode::kPlain && block != gates_of) {
      fill_gates(p, r, gate_low, a.gate_high + image * p.high_plane(), line, up, gates);
      gates_of = block;
    }
    const T *low = a.low + plane * p.low_plane(), *high = a.high + plane * p.high_plane();
    T* out = a.out + plane * p.low_plane();
    const bool whole_group = unit + kGroup <= end && c + kGroup <= p.channels;
    if (!p.x.doubles())
      forward_any<kMode>(p, r, low, high, gates, gate_low, out, line, up);
    else if (!whole_group)
      forward_double<kMode, false, 1>(p, r, low, high, gates, gate_low, out);
    else if (stream)
      forward_double<kMode, true, kGroup>(p, r, low, high, gates, gate_low, out);
    else
      forward_double<kMode, false, kGroup>(p, r, low, high, gates, gate_low, out);
    unit += p.x.doubles() && whole_group ? kGroup : 1;
  }
}

template <Mode kMode, bool kStream, typename T>
void forward_nhwc(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / p.y.out;
    const int64_t high_row =
        (image * p.y.in + p.y.source(static_cast<int32_t>(unit % p.y.out))) * p.x.in;
    for (int32_t x = 0; x < p.x.out; ++x) {
      const int64_t pixel = unit * p.x.out + x, source = high_row + p.x.source(x);
      const A gate_low = kMode == Mode::kPlain ? A(0) : widen(a.gate_low[pixel]);
      const A gate = kMode == Mode::kPlain ? A(1) : gate_low * widen(a.gate_high[source]);
      const T *low = a.low + pixel * p.channels, *high = a.high + source * p.channels;
      T* out = a.out + pixel * p.channels;
      for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
        auto v = lanes.load(low + c);
        if constexpr (kMode == Mode::kSelfGated) v = v * (A(1) + gate_low);
        if constexpr (kMode == Mode::kPlain)
          v = v + lanes.load(high + c);
        else
          v = v + gate * lanes.load(high + c);
        lanes.template store<kStream>(out + c, v);
      });
    }
  }
}

template <Mode kMode, typename T>
void forward_mode(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& args, bool stream,
                  int64_t begin, int64_t end, acc_t<T>* scratch) {
  if (!p.channels_last)
    forward_nchw<kMode>(p, blocks, args, stream, begin, end, scratch);
  else if (stream)
    forward_nhwc<kMode, true>(p, args, begin, end);
  else
    forward_nhwc<kMode, false>(p, args, begin, end);
  if (stream) stream_fence();
}

}  // namespace

template <Isa isa, typename T>
void forward(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& args, bool stream,
             int64_t begin, int64_t end, acc_t<T>* scratch) {
  stream = stream && can_stream(p, args.out);
  switch (p.mode) {
    case Mode::kPlain:
      return forward_mode<Mode::kPlain>(p, blocks, args, stream, begin, end, scratch);
    case Mode::kGated:
      return forward_mode<Mode::kGated>(p, blocks, args, stream, begin, end, scratch);
    case Mode::kSelfGated:
      return forward_mode<Mode::kSelfGated>(p, blocks, args, stream, begin, end, scratch);
  }
}

#define TINYOPS_INSTANTIATE(T)                                                               \
  template void forward<kIsa, T>(const Problem&, const Blocks&, const ForwardArgs<T>&, bool, \
                                 int64_t, int64_t, acc_t<T>*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::gated_upsample_add
