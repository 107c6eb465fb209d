// difference_gate on the CPU: the passes over the features. Memory-bound: the forward reads
// features and writes out, the backward reads grad and features once and writes d_features.
#include "difference_gate.h"
#include "simd.h"

namespace tinyops::difference_gate {
namespace {

constexpr int kGroup = 4;  // channels that are worked on together, so that factors are loaded once

struct Range {
  int64_t begin, end;  // cells of an image
};
Range block_cells(const Problem& p, const Cut& cut, int64_t block) {
  const int64_t begin = block * cut.cells, end = begin + cut.cells;
  return {begin, end < p.cells() ? end : p.cells()};
}
int64_t runs_of(const Problem& p) {
  return ceil_div(p.cells(), kRun);
}

// Streaming stores need every vector aligned: lines of whole vectors from an aligned start. Runs,
// and so blocks, begin on a whole vector.
template <typename T>
bool can_stream(const Problem& p, const T* out) {
  const int64_t line = (p.channels_last ? p.channels : p.cells()) * int64_t{sizeof(T)};
  constexpr int64_t kBytes = kLanes<acc_t<T>> * int64_t{sizeof(T)};
  return line % kBytes == 0 && reinterpret_cast<uintptr_t>(out) % kBytes == 0;
}

template <bool kStream, int kChannels, typename T>
void forward_planes(const ForwardArgs<T>& a, const Problem& p, int64_t plane, const Range& r,
                    const acc_t<T>* factors) {
  using A = acc_t<T>;
  const int64_t cells = p.cells(), start = plane * cells + r.begin;
  A weight[kChannels];
  for (int k = 0; k < kChannels; ++k) weight[k] = widen(a.channel_weight[plane + k]);
  for_lanes<A>(r.end - r.begin, [&](auto lanes, int64_t i) {
    const auto factor = lanes.load(factors + r.begin + i);
    for (int k = 0; k < kChannels; ++k) {
      const int64_t at = start + k * cells + i;
      lanes.template store<kStream>(a.out + at, lanes.load(a.features + at) * weight[k] * factor);
    }
  });
}

template <bool kStream, typename T>
void forward_nchw(const Problem& p, const Cut& cut, const ForwardArgs<T>& a, int64_t begin,
                  int64_t end) {
  for (int64_t unit = begin; unit < end;) {
    const int64_t block = unit / p.channels, image = block / cut.per_image, c = unit % p.channels;
    const Range r = block_cells(p, cut, block % cut.per_image);
    const acc_t<T>* factors = a.factors + image * p.cells();
    const int64_t plane = image * p.channels + c;
    const bool whole_group = unit + kGroup <= end && c + kGroup <= p.channels;
    if (whole_group)
      forward_planes<kStream, kGroup>(a, p, plane, r, factors);
    else
      forward_planes<kStream, 1>(a, p, plane, r, factors);
    unit += whole_group ? kGroup : 1;
  }
}

template <bool kStream, typename T>
void forward_nhwc(const Problem& p, const Cut& cut, const ForwardArgs<T>& a, int64_t begin,
                  int64_t end) {
  using A = acc_t<T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / cut.per_image;
    const Range r = block_cells(p, cut, unit % cut.per_image);
    const T* weight = a.channel_weight + image * p.channels;
    for (int64_t i = r.begin; i < r.end; ++i) {
      const int64_t cell = image * p.cells() + i, at = cell * p.channels;
      const A factor = a.factors[cell];
      for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
        lanes.template store<kStream>(
            a.out + at + c, lanes.load(a.features + at + c) * lanes.load(weight + c) * factor);
      });
    }
  }
}

// One run of kChannels channels from plane `plane` on.
template <bool kStream, int kChannels, typename T>
void backward_run(const BackwardArgs<T>& a, const Problem& p, int64_t plane, int64_t image,
                  const Range& r, acc_t<T>* parts) {
  using A = acc_t<T>;
  const int64_t cells = p.cells();
  const A* factors = a.factors + image * cells + r.begin;
  A* sums = a.sums == nullptr ? nullptr : a.sums + image * cells + r.begin;
  A weight[kChannels];
  Sum<A> part[kChannels];
  for (int k = 0; k < kChannels; ++k) weight[k] = widen(a.channel_weight[plane + k]);
  for_lanes<A>(r.end - r.begin, [&](auto lanes, int64_t i) {
    const auto factor = lanes.load(factors + i);
    typename decltype(lanes)::Value total = {};
    for (int k = 0; k < kChannels; ++k) {
      const int64_t at = (plane + k) * cells + r.begin + i;
      const auto g = lanes.load(a.grad + at), f = lanes.load(a.features + at);
      const auto scaled = g * factor;
      total = total + g * (f * weight[k]);
      part[k].add(scaled * f);
      if (a.d_features != nullptr)
        lanes.template store<kStream>(a.d_features + at, scaled * weight[k]);
    }
    if (sums != nullptr) lanes.store(sums + i, lanes.load(sums + i) + total);
  });
  for (int k = 0; parts != nullptr && k < kChannels; ++k) parts[k] = part[k].total();
}

template <bool kStream, typename T>
void backward_nchw(const Problem& p, const Cut& cut, const BackwardArgs<T>& a, int64_t begin,
                   int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / cut.per_image;
    const Range block = block_cells(p, cut, unit % cut.per_image);
    if (a.sums != nullptr)
      for (int64_t i = block.begin; i < block.end; ++i) a.sums[image * p.cells() + i] = 0;
    for (int64_t c = 0; c < p.channels;) {
      const bool whole_group = c + kGroup <= p.channels;
      for (int64_t start = block.begin; start < block.end; start += kRun) {
        const int64_t stop = start + kRun;
        const Range r{start, stop < block.end ? stop : block.end};
        acc_t<T>* parts = nullptr;
        if (a.parts != nullptr)
          parts = a.parts + (image * runs_of(p) + start / kRun) * p.channels + c;
        const int64_t plane = image * p.channels + c;
        if (whole_group)
          backward_run<kStream, kGroup>(a, p, plane, image, r, parts);
        else
          backward_run<kStream, 1>(a, p, plane, image, r, parts);
      }
      c += whole_group ? kGroup : 1;
    }
  }
}

template <bool kStream, typename T>
void backward_nhwc(const Problem& p, const Cut& cut, const BackwardArgs<T>& a, int64_t begin,
                   int64_t end, acc_t<T>* part) {
  using A = acc_t<T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / cut.per_image;
    const Range block = block_cells(p, cut, unit % cut.per_image);
    const T* weight = a.channel_weight + image * p.channels;
    for (int64_t start = block.begin; start < block.end; start += kRun) {
      const int64_t stop = start + kRun < block.end ? start + kRun : block.end;
      for (int64_t c = 0; c < p.channels; ++c) part[c] = 0;
      for (int64_t i = start; i < stop; ++i) {
        const int64_t cell = image * p.cells() + i, at = cell * p.channels;
        const A factor = a.factors[cell];
        Sum<A> total;
        for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
          const auto g = lanes.load(a.grad + at + c), f = lanes.load(a.features + at + c);
          const auto w = lanes.load(weight + c), scaled = g * factor;
          total.add(g * (f * w));
          lanes.store(part + c, lanes.load(part + c) + scaled * f);
          if (a.d_features != nullptr)
            lanes.template store<kStream>(a.d_features + at + c, scaled * w);
        });
        if (a.sums != nullptr) a.sums[cell] = total.total();
      }
      if (a.parts == nullptr) continue;
      A* to = a.parts + (image * runs_of(p) + start / kRun) * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) to[c] = part[c];
    }
  }
}

}  // namespace

template <Isa isa, typename T>
void forward(const Problem& p, const Cut& cut, const ForwardArgs<T>& a, bool stream, int64_t begin,
             int64_t end) {
  if (stream && can_stream(p, a.out)) {
    p.channels_last ? forward_nhwc<true>(p, cut, a, begin, end)
                    : forward_nchw<true>(p, cut, a, begin, end);
    stream_fence();
  } else {
    p.channels_last ? forward_nhwc<false>(p, cut, a, begin, end)
                    : forward_nchw<false>(p, cut, a, begin, end);
  }
}

template <Isa isa, typename T>
void backward(const Problem& p, const Cut& cut, const BackwardArgs<T>& a, bool stream,
              int64_t begin, int64_t end, acc_t<T>* scratch) {
  if (stream && can_stream(p, a.d_features)) {
    p.channels_last ? backward_nhwc<true>(p, cut, a, begin, end, scratch)
                    : backward_nchw<true>(p, cut, a, begin, end);
    stream_fence();
  } else {
    p.channels_last ? backward_nhwc<false>(p, cut, a, begin, end, scratch)
                    : backward_nchw<false>(p, cut, a, begin, end);
  }
}

template <Isa isa, typename T>
void add_parts(const Problem& p, const acc_t<T>* parts, T* d_channel_weight, int64_t begin,
               int64_t end) {
  using A = acc_t<T>;
  const int64_t runs = runs_of(p);
  for (int64_t image = begin; image < end; ++image) {
    const A* own = parts + image * runs * p.channels;
    for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
      typename decltype(lanes)::Value total = {};
      for (int64_t run = 0; run < runs; ++run)
        total = total + lanes.load(own + run * p.channels + c);
      lanes.store(d_channel_weight + image * p.channels + c, total);
    });
  }
}

#define TINYOPS_INSTANTIATE(T)                                                                     \
  template void forward<kIsa, T>(const Problem&, const Cut&, const ForwardArgs<T>&, bool, int64_t, \
                                 int64_t);                                                         \
  template void backward<kIsa, T>(const Problem&, const Cut&, const BackwardArgs<T>&, bool,        \
                                  int64_t, int64_t, acc_t<T>*);                                    \
  template void add_parts<kIsa, T>(const Problem&, const acc_t<T>*, T*, int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::difference_gate
