// gated_upsample_add on the CPU. Memory-bound: every wide tensor is read or written once, gates and
// upsampled rows live in scratch memory of the size of the L1 cache, in the accumulation type.
#include "gated_upsample_add.h"
#include "simd.h"

namespace tinyops::gated_upsample_add {
namespace {

constexpr int kGroup = 4;  // channels that are worked on together

// The rows of low that read source rows [source_begin, source_end).
struct Rows {
  int32_t source_begin, source_end, begin, end;
};

Rows block_rows(const Problem& p, const Blocks& blocks, int64_t block) {
  const int64_t b = block * blocks.rows, e = b + blocks.rows;
  const int32_t sb = static_cast<int32_t>(b);
  const int32_t se = static_cast<int32_t>(e < p.y.in ? e : p.y.in);
  return {sb, se, p.y.first(sb), p.y.first(se)};
}

// One row of high, widened and repeated to the width of low. `line` holds x.in elements.
// The stores are as wide as the loads that follow them: narrower ones cannot be forwarded.
template <typename T, typename A>
void upsample_row(const NearestAxis& x, const T* row, A* line, A* up) {
  constexpr int L = kLanes<A>;
  if (x.doubles()) {
    int64_t j = 0;
    for (; j + L <= x.in; j += L) {
      const Vector<A> v = Wide<A>::load(row + j);
      Wide<A>::store(up + 2 * j, repeat_half<0, A>(v));
      Wide<A>::store(up + 2 * j + L, repeat_half<1, A>(v));
    }
    for (; j < x.in; ++j) up[2 * j] = up[2 * j + 1] = widen(row[j]);
    return;
  }
  A* wide = x.out == x.in ? up : line;
  for_lanes<A>(x.in, [&](auto lanes, int64_t j) { lanes.store(wide + j, lanes.load(row + j)); });
  if (x.out == x.in) return;
  for (int32_t d = 0; d < x.out; ++d) up[d] = line[x.source(d)];
}

// The sum over the columns that read one source column, narrowed.
template <typename T, typename A>
void downsample_row(const NearestAxis& x, const A* sums, T* row) {
  constexpr int L = kLanes<A>;
  if (x.doubles()) {
    int64_t j = 0;
    for (; j + L <= x.in; j += L)
      Wide<A>::store(row + j,
                     sum_pairs<A>(Wide<A>::load(sums + 2 * j), Wide<A>::load(sums + 2 * j + L)));
    for (; j < x.in; ++j) row[j] = narrow<T>(sums[2 * j] + sums[2 * j + 1]);
    return;
  }
  for (int32_t j = 0; j < x.in; ++j) {
    A total = 0;
    for (int32_t d = x.first(j); d < x.first(j + 1); ++d) total += sums[d];
    row[j] = narrow<T>(total);
  }
}

// gate = gate_low * up(gate_high) on the rows of one block.
template <typename T, typename A>
void fill_gates(const Problem& p, const Rows& r, const T* gate_low, const T* gate_high, A* line,
                A* up, A* gates) {
  int32_t last = -1;
  for (int32_t y = r.begin; y < r.end; ++y, gates += p.x.out) {
    const int32_t i = p.y.source(y);
    if (i != last) upsample_row(p.x, gate_high + static_cast<int64_t>(i) * p.x.in, line, up);
    last = i;
    const T* low = gate_low + static_cast<int64_t>(y) * p.x.out;
    for_lanes<A>(p.x.out, [&](auto lanes, int64_t x) {
      lanes.store(gates + x, lanes.load(low + x) * lanes.load(up + x));
    });
  }
}

// One vector or element of the output, with `up` the upsampled high and `x` the column.
template <Mode kMode, bool kStream, typename Lanes, typename T, typename A, typename V>
void forward_point(Lanes lanes, int64_t x, const T* low, V up, const A* gates, const T* gate_low,
                   T* out) {
  auto v = lanes.load(low + x);
  if constexpr (kMode == Mode::kSelfGated) v = v * (lanes.load(gate_low + x) + A(1));
  if constexpr (kMode != Mode::kPlain) up = up * lanes.load(gates + x);
  lanes.template store<kStream>(out + x, v + up);
}

// A block of kGroup channels whose width doubles: their rows advance together, so that gates are
// fetched once for the group, and high goes from its row to the output in registers.
template <Mode kMode, bool kStream, int kGroup, typename T, typename A>
void forward_double(const Problem& p, const Rows& r, const T* low, const T* high, const A* gates,
                    const T* gate_low, T* out) {
  constexpr int L = kLanes<A>;
  const int64_t width = p.x.out, low_plane = p.low_plane(), high_plane = p.high_plane();
  for (int32_t y = r.begin; y < r.end; ++y, gates += width) {
    const int64_t row = y * width, source_row = int64_t{p.y.source(y)} * p.x.in;
    int64_t j = 0;
    for (; j + L <= p.x.in; j += L) {
      for (int k = 0; k < kGroup; ++k) {
        const int64_t at = row + k * low_plane;
        const auto v = Wide<A>::load(high + source_row + k * high_plane + j);
        forward_point<kMode, kStream>(Wide<A>{}, 2 * j, low + at, repeat_half<0, A>(v), gates,
                                      gate_low + row, out + at);
        forward_point<kMode, kStream>(Wide<A>{}, 2 * j + L, low + at, repeat_half<1, A>(v), gates,
                                      gate_low + row, out + at);
      }
    }
    for (; j < p.x.in; ++j) {
      for (int k = 0; k < kGroup; ++k) {
        const int64_t at = row + k * low_plane;
        const A v = widen(high[source_row + k * high_plane + j]);
        for (const int64_t x : {2 * j, 2 * j + 1})
          forward_point<kMode, kStream>(Single<A>{}, x, low + at, v, gates, gate_low + row,
                                        out + at);
      }
    }
  }
}

template <Mode kMode, bool kStream, typename T, typename A>
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
      forward_point<kMode, kStream>(lanes, x, low + row, lanes.load(up + x), gates, gate_low + row,
                                    out + row);
    });
  }
}

template <Mode kMode, bool kStream, typename T>
void forward_nchw(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& a, int64_t begin,
                  int64_t end, acc_t<T>* scratch) {
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
      forward_any<kMode, kStream>(p, r, low, high, gates, gate_low, out, line, up);
    else if (whole_group)
      forward_double<kMode, kStream, kGroup>(p, r, low, high, gates, gate_low, out);
    else
      forward_double<kMode, kStream, 1>(p, r, low, high, gates, gate_low, out);
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

template <typename T>
void backward_plain_nchw(const Problem& p, const Blocks& blocks, const BackwardArgs<T>& a,
                         int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const int64_t width = p.x.out;
  A* sums = scratch;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / blocks.per_image;
    const Rows r = block_rows(p, blocks, unit % blocks.per_image);
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t plane = image * p.channels + c;
      for (int32_t i = r.source_begin; i < r.source_end; ++i) {
        for (int64_t x = 0; x < width; ++x) sums[x] = 0;
        for (int32_t y = p.y.first(i); y < p.y.first(i + 1); ++y) {
          const T* grad = a.grad + plane * p.low_plane() + y * width;
          for_lanes<A>(width, [&](auto lanes, int64_t x) {
            lanes.store(sums + x, lanes.load(sums + x) + lanes.load(grad + x));
          });
        }
        downsample_row(p.x, sums, a.d_high + plane * p.high_plane() + int64_t{i} * p.x.in);
      }
    }
  }
}

// A block of kChannels channels whose width doubles, from plane `plane` on: see forward_double.
template <Mode kMode, bool kStream, int kChannels, typename T, typename A>
void backward_double(const Problem& p, const Rows& r, const BackwardArgs<T>& a, int64_t plane,
                     const T* gate_low, const A* gates, A* product, A* own) {
  constexpr bool kSelf = kMode == Mode::kSelfGated;
  const int64_t width = p.x.out, low_plane = p.low_plane(), high_plane = p.high_plane();
  // The columns 2j .. of source columns j .. : two vectors, or the two pixels of a single one.
  const auto columns = [&](auto lanes, int32_t i, int64_t j, auto repeat, auto pair_sum) {
    using V = typename decltype(lanes)::Value;
    constexpr int kStep = decltype(lanes)::kStep;
    const int64_t source = plane * high_plane + int64_t{i} * p.x.in + j;
    V sums[kChannels][2] = {};
    for (int32_t y = p.y.first(i); y < p.y.first(i + 1); ++y) {
      for (int half = 0; half < 2; ++half) {
        const int64_t pixel = y * width + 2 * j + half * kStep;
        const int64_t local = pixel - r.begin * width;
        const V gate = lanes.load(gates + local);
        V total = lanes.load(product + local), total_own = {}, self = {};
        if constexpr (kSelf) {
          total_own = lanes.load(own + local);
          self = lanes.load(gate_low + pixel) + A(1);
        }
        for (int k = 0; k < kChannels; ++k) {
          const int64_t at = (plane + k) * low_plane + pixel;
          const V g = lanes.load(a.grad + at);
          total = total + g * repeat(lanes.load(a.high + source + k * high_plane), half);
          sums[k][half] = sums[k][half] + g * gate;
          if constexpr (kSelf) {
            total_own = total_own + g * lanes.load(a.low + at);
            lanes.template store<kStream>(a.d_low + at, g * self);
          }
        }
        lanes.store(product + local, total);
        if constexpr (kSelf) lanes.store(own + local, total_own);
      }
    }
    for (int k = 0; k < kChannels; ++k)
      lanes.store(a.d_high + source + k * high_plane, pair_sum(sums[k][0], sums[k][1]));
  };
  using V = Vector<A>;
  for (int32_t i = r.source_begin; i < r.source_end; ++i) {
    int64_t j = 0;
    for (; j + kLanes<A> <= p.x.in; j += kLanes<A>)
      columns(
          Wide<A>{}, i, j,
          [](V v, int half) { return half == 0 ? repeat_half<0, A>(v) : repeat_half<1, A>(v); },
          [](V left, V right) { return sum_pairs<A>(left, right); });
    for (; j < p.x.in; ++j)
      columns(
          Single<A>{}, i, j, [](A v, int) { return v; },
          [](A left, A right) { return left + right; });
  }
}

template <Mode kMode, bool kStream, typename T, typename A>
void backward_any(const Problem& p, const Rows& r, const BackwardArgs<T>& a, int64_t plane,
                  const T* gate_low, const A* gates, A* product, A* own, A* line, A* up, A* sums) {
  const int64_t width = p.x.out;
  for (int32_t i = r.source_begin; i < r.source_end; ++i) {
    const int64_t source_row = plane * p.high_plane() + int64_t{i} * p.x.in;
    upsample_row(p.x, a.high + source_row, line, up);
    for (int64_t x = 0; x < width; ++x) sums[x] = 0;
    for (int32_t y = p.y.first(i); y < p.y.first(i + 1); ++y) {
      const int64_t row = y * width, at = plane * p.low_plane() + row;
      const int64_t local = row - r.begin * width;
      for_lanes<A>(width, [&](auto lanes, int64_t x) {
        const auto g = lanes.load(a.grad + at + x);
        A* to = product + local + x;
        lanes.store(to, lanes.load(to) + g * lanes.load(up + x));
        lanes.store(sums + x, lanes.load(sums + x) + g * lanes.load(gates + local + x));
        if constexpr (kMode == Mode::kSelfGated) {
          A* to_own = own + local + x;
          lanes.store(to_own, lanes.load(to_own) + g * lanes.load(a.low + at + x));
          lanes.template store<kStream>(a.d_low + at + x,
                                        g * (lanes.load(gate_low + row + x) + A(1)));
        }
      });
    }
    downsample_row(p.x, sums, a.d_high + source_row);
  }
}

template <Mode kMode, bool kStream, typename T>
void backward_nchw(const Problem& p, const Blocks& blocks, const BackwardArgs<T>& a, int64_t begin,
                   int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const int64_t width = p.x.out;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / blocks.per_image;
    const Rows r = block_rows(p, blocks, unit % blocks.per_image);
    const int64_t size = (r.end - r.begin) * width;
    // product = sum_c grad * up(high), own = sum_c grad * low
    A *line = scratch, *up = line + whole_lines<A>(p.x.in), *sums = up + whole_lines<A>(width);
    A *gates = sums + whole_lines<A>(width), *product = gates + whole_lines<A>(size);
    A* own = product + whole_lines<A>(size);
    const T* gate_low = a.gate_low + image * p.low_plane();
    const T* gate_high = a.gate_high + image * p.high_plane();
    fill_gates(p, r, gate_low, gate_high, line, up, gates);
    for (int64_t k = 0; k < size; ++k) product[k] = 0;
    for (int64_t k = 0; kMode == Mode::kSelfGated && k < size; ++k) own[k] = 0;

    constexpr int64_t kWidth = kMode == Mode::kSelfGated ? 2 : kGroup;
    for (int64_t c = 0; c < p.channels;) {
      const int64_t plane = image * p.channels + c;
      const bool whole_group = p.x.doubles() && c + kWidth <= p.channels;
      if (!p.x.doubles())
        backward_any<kMode, kStream>(p, r, a, plane, gate_low, gates, product, own, line, up, sums);
      else if (whole_group)
        backward_double<kMode, kStream, kWidth>(p, r, a, plane, gate_low, gates, product, own);
      else
        backward_double<kMode, kStream, 1>(p, r, a, plane, gate_low, gates, product, own);
      c += whole_group ? kWidth : 1;
    }

    for (int32_t i = r.source_begin; i < r.source_end; ++i) {
      const int64_t source_row = int64_t{i} * p.x.in;
      upsample_row(p.x, gate_high + source_row, line, up);
      for (int64_t x = 0; x < width; ++x) sums[x] = 0;
      for (int32_t y = p.y.first(i); y < p.y.first(i + 1); ++y) {
        const int64_t row = y * width, local = (y - r.begin) * width;
        T* d_gate_low = a.d_gate_low + image * p.low_plane() + row;
        for_lanes<A>(width, [&](auto lanes, int64_t x) {
          const auto product_x = lanes.load(product + local + x);
          auto d = lanes.load(up + x) * product_x;
          if constexpr (kMode == Mode::kSelfGated) d = d + lanes.load(own + local + x);
          lanes.store(d_gate_low + x, d);
          lanes.store(sums + x, lanes.load(sums + x) + lanes.load(gate_low + row + x) * product_x);
        });
      }
      downsample_row(p.x, sums, a.d_gate_high + image * p.high_plane() + source_row);
    }
  }
}

template <Mode kMode, bool kStream, typename T>
void backward_nhwc(const Problem& p, const Blocks& blocks, const BackwardArgs<T>& a, int64_t begin,
                   int64_t end, acc_t<T>* d_high) {
  using A = acc_t<T>;
  constexpr bool kGated = kMode != Mode::kPlain, kSelf = kMode == Mode::kSelfGated;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / blocks.per_image;
    const Rows r = block_rows(p, blocks, unit % blocks.per_image);
    for (int32_t i = r.source_begin; i < r.source_end; ++i) {
      for (int32_t j = 0; j < p.x.in; ++j) {
        const int64_t source = (image * p.y.in + i) * p.x.in + j;
        const T* high = kGated ? a.high + source * p.channels : nullptr;
        const A gate_high = kGated ? widen(a.gate_high[source]) : A(1);
        A d_gate_high = 0;
        for (int64_t c = 0; c < p.channels; ++c) d_high[c] = 0;
        for (int32_t y = p.y.first(i); y < p.y.first(i + 1); ++y) {
          for (int32_t x = p.x.first(j); x < p.x.first(j + 1); ++x) {
            const int64_t pixel = (image * p.y.out + y) * p.x.out + x, at = pixel * p.channels;
            const A gate_low = kGated ? widen(a.gate_low[pixel]) : A(1);
            const A gate = gate_low * gate_high;
            Sum<A> product, own;
            for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
              const auto g = lanes.load(a.grad + at + c);
              lanes.store(d_high + c, lanes.load(d_high + c) + gate * g);
              if constexpr (kGated) product.add(g * lanes.load(high + c));
              if constexpr (kSelf) {
                own.add(g * lanes.load(a.low + at + c));
                lanes.template store<kStream>(a.d_low + at + c, g * (A(1) + gate_low));
              }
            });
            if constexpr (kGated) {
              const A total = product.total();
              a.d_gate_low[pixel] = narrow<T>(gate_high * total + (kSelf ? own.total() : A(0)));
              d_gate_high += gate_low * total;
            }
          }
        }
        if constexpr (kGated) a.d_gate_high[source] = narrow<T>(d_gate_high);
        T* to = a.d_high + source * p.channels;
        for_lanes<A>(p.channels,
                     [&](auto lanes, int64_t c) { lanes.store(to + c, lanes.load(d_high + c)); });
      }
    }
  }
}

template <Mode kMode, bool kStream, typename T>
void forward_mode(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& args, int64_t begin,
                  int64_t end, acc_t<T>* scratch) {
  if (p.channels_last)
    forward_nhwc<kMode, kStream>(p, args, begin, end);
  else
    forward_nchw<kMode, kStream>(p, blocks, args, begin, end, scratch);
}
template <bool kStream, typename T>
void forward_modes(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& args,
                   int64_t begin, int64_t end, acc_t<T>* scratch) {
  switch (p.mode) {
    case Mode::kPlain:
      return forward_mode<Mode::kPlain, kStream>(p, blocks, args, begin, end, scratch);
    case Mode::kGated:
      return forward_mode<Mode::kGated, kStream>(p, blocks, args, begin, end, scratch);
    case Mode::kSelfGated:
      return forward_mode<Mode::kSelfGated, kStream>(p, blocks, args, begin, end, scratch);
  }
}

// Streaming stores need every vector aligned: rows of whole vectors from an aligned start.
template <typename T>
bool can_stream(const Problem& p, const T* out) {
  const int64_t row = (p.channels_last ? p.channels : p.x.out) * int64_t{sizeof(T)};
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  return row % kBytes == 0 && reinterpret_cast<uintptr_t>(out) % kBytes == 0;
}

}  // namespace

template <Isa isa, typename T>
void forward(const Problem& p, const Blocks& blocks, const ForwardArgs<T>& args, bool stream,
             int64_t begin, int64_t end, acc_t<T>* scratch) {
  if (stream && can_stream(p, args.out)) {
    forward_modes<true>(p, blocks, args, begin, end, scratch);
    stream_fence();
  } else {
    forward_modes<false>(p, blocks, args, begin, end, scratch);
  }
}

template <Isa isa, typename T>
void backward(const Problem& p, const Blocks& blocks, const BackwardArgs<T>& args, bool stream,
              int64_t begin, int64_t end, acc_t<T>* scratch) {
  const bool nhwc = p.channels_last;
  switch (p.mode) {
    case Mode::kPlain:
      return nhwc ? backward_nhwc<Mode::kPlain, false>(p, blocks, args, begin, end, scratch)
                  : backward_plain_nchw(p, blocks, args, begin, end, scratch);
    case Mode::kGated:
      return nhwc ? backward_nhwc<Mode::kGated, false>(p, blocks, args, begin, end, scratch)
                  : backward_nchw<Mode::kGated, false>(p, blocks, args, begin, end, scratch);
    case Mode::kSelfGated: break;
  }
  constexpr Mode kSelf = Mode::kSelfGated;
  if (stream && can_stream(p, args.d_low)) {
    nhwc ? backward_nhwc<kSelf, true>(p, blocks, args, begin, end, scratch)
         : backward_nchw<kSelf, true>(p, blocks, args, begin, end, scratch);
    stream_fence();
  } else {
    nhwc ? backward_nhwc<kSelf, false>(p, blocks, args, begin, end, scratch)
         : backward_nchw<kSelf, false>(p, blocks, args, begin, end, scratch);
  }
}

#define TINYOPS_INSTANTIATE(T)                                                                 \
  template void forward<kIsa, T>(const Problem&, const Blocks&, const ForwardArgs<T>&, bool,   \
                                 int64_t, int64_t, acc_t<T>*);                                 \
  template void backward<kIsa, T>(const Problem&, const Blocks&, const BackwardArgs<T>&, bool, \
                                  int64_t, int64_t, acc_t<T>*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::gated_upsample_add
