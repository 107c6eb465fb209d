// The forward of the pixel shuffle on the CPU. Memory-bound: every input is read and the output
// written once. Sub-pixels are interleaved in registers.
#include "pixel_shuffle_rows.h"

namespace tinyops::pixel_shuffle {
namespace {

// Bytes as they are.
template <bool kStream>
void copy(void* to, const void* from, int64_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  int64_t i = 0;
  if constexpr (kStream) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kVectorBytes);
    const int64_t head = past == 0 ? 0 : kVectorBytes - past;
    i = head < bytes ? head : bytes;
    std::memcpy(out, in, static_cast<size_t>(i));
    for (; i + kVectorBytes <= bytes; i += kVectorBytes) stream_vector(read<U32>(in + i), out + i);
  }
  std::memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
}

// One row of content in one channel: kUp rows of its output. `content` points at sub-pixel 0.
template <int kUp, Join kJoin, bool kStream, typename T>
void shuffle_rows(const Problem& p, const T* content, const T* residual, T* out) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  const A slope = static_cast<A>(p.negative_slope);
  const int64_t width = p.width, step = p.part_step() * p.plane();
  for (int i = 0; i < kUp; ++i) {
    int64_t x = 0;
    for (; x + L <= width; x += L) {
      Vector<A> v[kUp];
#pragma GCC unroll 4
      for (int j = 0; j < kUp; ++j) {
        v[j] = Wide<A>::load(content + j * step + x);
        v[j] = leaky(v[j], v[j], slope);
      }
      zip<kUp, A>(v);
#pragma GCC unroll 4
      for (int j = 0; j < kUp; ++j) {
        const int64_t at = kUp * x + j * L;
        if constexpr (kJoin == Join::kAdd) v[j] += Wide<A>::load(residual + at);
        Wide<A>::template store<kStream>(out + at, v[j]);
      }
    }
    for (; x < width; ++x) {
      for (int j = 0; j < kUp; ++j) {
        const int64_t at = kUp * x + j;
        A v = widen(content[j * step + x]);
        v = leaky(v, v, slope);
        if constexpr (kJoin == Join::kAdd) v += widen(residual[at]);
        out[at] = narrow<T>(v);
      }
    }
    content += kUp * step;
    out += kUp * width;
    if constexpr (kJoin == Join::kAdd) residual += kUp * width;
  }
}

template <int kUp, Join kJoin, bool kStream, typename T>
void forward_nchw(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end) {
  const int64_t unit_size = kUp * kUp * p.width, copied = p.outer_channels - p.channels;
  for (int64_t unit = begin; unit < end;) {
    const int64_t plane = unit / p.height, y = unit % p.height;
    const int64_t image = plane / p.outer_channels, c = plane % p.outer_channels;
    if (kJoin == Join::kConcat && c >= p.channels) {  // the rest of the image is one run of memory
      const int64_t last = (image + 1) * p.outer_channels * p.height;
      const int64_t units = (last < end ? last : end) - unit;
      const int64_t from = ((image * copied + c - p.channels) * p.height + y) * unit_size;
      copy<kStream>(a.out + unit * unit_size, a.other + from,
                    units * unit_size * int64_t{sizeof(T)});
      unit += units;
      continue;
    }
    const int64_t source = image * p.channels * p.parts() + c * p.channel_step();
    const T* content = a.content + source * p.plane() + y * p.width;
    const int64_t at = unit * unit_size;  // of the residual as of the output
    const T* residual = kJoin == Join::kAdd ? a.other + at : nullptr;
    shuffle_rows<kUp, kJoin, kStream>(p, content, residual, a.out + at);
    ++unit;
  }
}

// One pixel of content: the shuffled channels of kUp x kUp pixels. Offsets of these pixels from the
// first one are those of the residual, too.
template <int kUp, Join kJoin, bool kStream, typename T>
void shuffle_pixel(const Problem& p, const T* content, const T* residual, T* out,
                   const int64_t* offsets) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>, kParts = kUp * kUp;
  const A slope = static_cast<A>(p.negative_slope);
  if (p.order == Order::kDcr) {
    for (int k = 0; k < kParts; ++k, content += p.channels) {
      for_lanes<A>(p.channels, [&](auto lanes, int64_t c) {
        auto v = lanes.load(content + c);
        v = leaky(v, v, slope);
        if constexpr (kJoin == Join::kAdd) v += lanes.load(residual + offsets[k] + c);
        lanes.template store<kStream>(out + offsets[k] + c, v);
      });
    }
    return;
  }
  int64_t c = 0;
  for (; c + L <= p.channels; c += L) {
    Vector<A> v[kParts];
#pragma GCC unroll 16
    for (int k = 0; k < kParts; ++k) {
      v[k] = Wide<A>::load(content + c * kParts + k * L);
      v[k] = leaky(v[k], v[k], slope);
    }
    unzip<kParts, A>(v);
#pragma GCC unroll 16
    for (int k = 0; k < kParts; ++k) {
      if constexpr (kJoin == Join::kAdd) v[k] += Wide<A>::load(residual + offsets[k] + c);
      Wide<A>::template store<kStream>(out + offsets[k] + c, v[k]);
    }
  }
  for (; c < p.channels; ++c) {
    for (int k = 0; k < kParts; ++k) {
      A v = widen(content[c * kParts + k]);
      v = leaky(v, v, slope);
      if constexpr (kJoin == Join::kAdd) v += widen(residual[offsets[k] + c]);
      out[offsets[k] + c] = narrow<T>(v);
    }
  }
}

template <int kUp, Join kJoin, bool kStream, typename T>
void forward_nhwc(const Problem& p, const ForwardArgs<T>& a, int64_t begin, int64_t end) {
  const int64_t wide = kUp * p.width, outer = p.outer_channels, copied = outer - p.channels;
  int64_t offsets[kUp * kUp];
  for (int k = 0; k < kUp * kUp; ++k) offsets[k] = (k / kUp * wide + k % kUp) * outer;
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int64_t x = 0; x < p.width; ++x) {
      const T* content = a.content + (unit * p.width + x) * p.channels * p.parts();
      const int64_t pixel = unit * kUp * wide + kUp * x, at = pixel * outer;
      const T* residual = kJoin == Join::kAdd ? a.other + at : nullptr;
      shuffle_pixel<kUp, kJoin, kStream>(p, content, residual, a.out + at, offsets);
      if (copied > 0) {
        for (int i = 0; i < kUp; ++i) {
          for (int j = 0; j < kUp; ++j) {
            const int64_t to = pixel + i * wide + j;
            copy<kStream>(a.out + to * outer + p.channels, a.other + to * copied,
                          copied * int64_t{sizeof(T)});
          }
        }
      }
    }
  }
}

}  // namespace

template <Isa isa, typename T>
void forward(const Problem& p, const ForwardArgs<T>& a, bool stream, int64_t begin, int64_t end) {
  stream =
      stream && lines_are_vectors(p.channels_last ? p.outer_channels : p.upscale * p.width, a.out);
  const auto run = [&](auto up, auto join, auto streamed) {
    constexpr int kUp = decltype(up)::value;
    constexpr Join kJoin = decltype(join)::value;
    constexpr bool kStream = decltype(streamed)::value;
    p.channels_last ? forward_nhwc<kUp, kJoin, kStream>(p, a, begin, end)
                    : forward_nchw<kUp, kJoin, kStream>(p, a, begin, end);
  };
  using Yes = std::integral_constant<bool, true>;
  using No = std::integral_constant<bool, false>;
  for_upscale(p.upscale, [&](auto up) {
    if (a.join == Join::kAdd) {
      constexpr std::integral_constant<Join, Join::kAdd> kAdd;
      stream ? run(up, kAdd, Yes{}) : run(up, kAdd, No{});
    } else {
      constexpr std::integral_constant<Join, Join::kConcat> kConcat;
      stream ? run(up, kConcat, Yes{}) : run(up, kConcat, No{});
    }
  });
  if (stream) stream_fence();
}

#define TINYOPS_INSTANTIATE(T) \
  template void forward<kIsa, T>(const Problem&, const ForwardArgs<T>&, bool, int64_t, int64_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::pixel_shuffle
