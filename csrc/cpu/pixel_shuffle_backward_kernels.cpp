// The backward of the pixel shuffle on the CPU: the gradient of content from the first channels of
// that of the output. Sub-pixels are taken apart in registers.
#include "pixel_shuffle_rows.h"

namespace tinyops::pixel_shuffle {
namespace {

// kUp rows of one channel of grad. `content` and `d_content` point at sub-pixel 0.
template <int kUp, bool kActive, bool kStream, typename T>
void gather_rows(const Problem& p, const T* grad, const T* content, T* d_content) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  const A slope = static_cast<A>(p.negative_slope);
  const int64_t width = p.width, step = p.part_step() * p.plane();
  for (int i = 0; i < kUp; ++i) {
    int64_t x = 0;
    for (; x + L <= width; x += L) {
      Vector<A> v[kUp];
#pragma GCC unroll 4
      for (int j = 0; j < kUp; ++j) v[j] = Wide<A>::load(grad + kUp * x + j * L);
      unzip<kUp, A>(v);
#pragma GCC unroll 4
      for (int j = 0; j < kUp; ++j) {
        const int64_t at = j * step + x;
        if constexpr (kActive) v[j] = leaky(Wide<A>::load(content + at), v[j], slope);
        Wide<A>::template store<kStream>(d_content + at, v[j]);
      }
    }
    for (; x < width; ++x) {
      for (int j = 0; j < kUp; ++j) {
        const int64_t at = j * step + x;
        A v = widen(grad[kUp * x + j]);
        if constexpr (kActive) v = leaky(widen(content[at]), v, slope);
        d_content[at] = narrow<T>(v);
      }
    }
    grad += kUp * width;
    d_content += kUp * step;
    if constexpr (kActive) content += kUp * step;
  }
}

template <int kUp, bool kActive, bool kStream, typename T>
void backward_nchw(const Problem& p, const BackwardArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t plane = unit / p.height, y = unit % p.height;
    const int64_t image = plane / p.channels, c = plane % p.channels;
    const int64_t source = image * p.channels * p.parts() + c * p.channel_step();
    const int64_t at = source * p.plane() + y * p.width;
    const int64_t from = ((image * p.outer_channels + c) * p.height + y) * kUp * kUp * p.width;
    const T* content = kActive ? a.content + at : nullptr;
    gather_rows<kUp, kActive, kStream>(p, a.grad + from, content, a.d_content + at);
  }
}

// The shuffled channels of kUp x kUp pixels of grad, which lie at `offsets`: one pixel of
// d_content.
template <int kUp, bool kActive, bool kStream, typename T>
void gather_pixel(const Problem& p, const T* grad, const T* content, T* d_content,
                  const int64_t* offsets) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>, kParts = kUp * kUp;
  const A slope = static_cast<A>(p.negative_slope);
  if (p.order == Order::kDcr) {
    for (int k = 0; k < kParts; ++k) {
      for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
        const int64_t at = k * p.channels + c;
        auto v = lanes.load(grad + offsets[k] + c);
        if constexpr (kActive) v = leaky(lanes.load(content + at), v, slope);
        lanes.template store<kStream>(d_content + at, v);
      });
    }
    return;
  }
  int64_t c = 0;
  for (; c + L <= p.channels; c += L) {
    Vector<A> v[kParts];
#pragma GCC unroll 16
    for (int k = 0; k < kParts; ++k) v[k] = Wide<A>::load(grad + offsets[k] + c);
    zip<kParts, A>(v);
#pragma GCC unroll 16
    for (int k = 0; k < kParts; ++k) {
      const int64_t at = c * kParts + k * L;
      if constexpr (kActive) v[k] = leaky(Wide<A>::load(content + at), v[k], slope);
      Wide<A>::template store<kStream>(d_content + at, v[k]);
    }
  }
  for (; c < p.channels; ++c) {
    for (int k = 0; k < kParts; ++k) {
      const int64_t at = c * kParts + k;
      A v = widen(grad[offsets[k] + c]);
      if constexpr (kActive) v = leaky(widen(content[at]), v, slope);
      d_content[at] = narrow<T>(v);
    }
  }
}

template <int kUp, bool kActive, bool kStream, typename T>
void backward_nhwc(const Problem& p, const BackwardArgs<T>& a, int64_t begin, int64_t end) {
  const int64_t wide = kUp * p.width;
  int64_t offsets[kUp * kUp];
  for (int k = 0; k < kUp * kUp; ++k) offsets[k] = (k / kUp * wide + k % kUp) * p.outer_channels;
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int64_t x = 0; x < p.width; ++x) {
      const int64_t at = (unit * p.width + x) * p.channels * p.parts();
      const int64_t from = (unit * kUp * wide + kUp * x) * p.outer_channels;
      const T* content = kActive ? a.content + at : nullptr;
      gather_pixel<kUp, kActive, kStream>(p, a.grad + from, content, a.d_content + at, offsets);
    }
  }
}

}  // namespace

template <Isa isa, typename T>
void backward(const Problem& p, const BackwardArgs<T>& a, bool stream, int64_t begin, int64_t end) {
  stream =
      stream && lines_are_vectors(p.channels_last ? p.channels * p.parts() : p.width, a.d_content);
  const auto run = [&](auto up, auto active, auto streamed) {
    constexpr int kUp = decltype(up)::value;
    constexpr bool kActive = decltype(active)::value, kStream = decltype(streamed)::value;
    p.channels_last ? backward_nhwc<kUp, kActive, kStream>(p, a, begin, end)
                    : backward_nchw<kUp, kActive, kStream>(p, a, begin, end);
  };
  using Yes = std::integral_constant<bool, true>;
  using No = std::integral_constant<bool, false>;
  for_upscale(p.upscale, [&](auto up) {
    if (a.content)
      stream ? run(up, Yes{}, Yes{}) : run(up, Yes{}, No{});
    else
      stream ? run(up, No{}, Yes{}) : run(up, No{}, No{});
  });
  if (stream) stream_fence();
}

#define TINYOPS_INSTANTIATE(T) \
  template void backward<kIsa, T>(const Problem&, const BackwardArgs<T>&, bool, int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::pixel_shuffle
