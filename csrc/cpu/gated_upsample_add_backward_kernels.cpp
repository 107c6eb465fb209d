// The backward of gated_upsample_add on the CPU. The gradient is read once; the sums over channels
// that the gates need are added up in scratch memory while the channels pass by.
#include "gated_upsample_add_rows.h"

namespace tinyops::gated_upsample_add {
namespace {

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

template <Mode kMode, typename T, typename A>
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
          lanes.store(a.d_low + at + x, g * (lanes.load(gate_low + row + x) + A(1)));
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
        backward_any<kMode>(p, r, a, plane, gate_low, gates, product, own, line, up, sums);
      else if (whole_group)
        backward_double<kMode, kStream, kWidth>(p, r, a, plane, gate_low, gates, product, own);
      else
        backward_double<kMode, false, 1>(p, r, a, plane, gate_low, gates, product, own);
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

}  // namespace

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
  template void backward<kIsa, T>(const Problem&, const Blocks&, const BackwardArgs<T>&, bool, \
                                  int64_t, int64_t, acc_t<T>*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::gated_upsample_add
