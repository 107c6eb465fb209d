// The backward of avg_max_pool on the CPU: writes the gradient once and reads next to nothing.
#include "avg_max_pool.h"
#include "simd.h"

namespace tinyops::avg_max_pool {
namespace {

typedef unsigned char Bytes __attribute__((vector_size(kVectorBytes)));

// n copies of one value.
template <typename T>
void fill(T* p, int64_t n, T value, bool stream) {
  constexpr int64_t L = kVectorBytes / int64_t{sizeof(T)};
  T pattern[L];
  for (T& x : pattern) x = value;
  const Bytes v = read<Bytes>(pattern);
  int64_t i = 0;
  if (stream) {
    for (; i < n && reinterpret_cast<uintptr_t>(p + i) % kVectorBytes != 0; ++i) p[i] = value;
    for (; i + L <= n; i += L) stream_vector(v, p + i);
  } else {
    for (; i + L <= n; i += L) std::memcpy(p + i, &v, sizeof(v));
  }
  for (; i < n; ++i) p[i] = value;
}

// A copy of a line that is in the cache.
template <typename T>
void put(T* p, const T* line, int64_t n, bool stream) {
  constexpr int64_t L = kVectorBytes / int64_t{sizeof(T)};
  if (!stream || n % L != 0) {
    std::memcpy(p, line, static_cast<size_t>(n) * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < n; i += L) stream_vector(read<Bytes>(line + i), p + i);
}

template <typename T>
acc_t<T> share(const BackwardArgs<T>& a, int64_t plane, Extent e) {
  return e.cells() == 0
             ? 0
             : static_cast<acc_t<T>>(widen(a.d_mean[plane]) / static_cast<double>(e.cells()));
}
template <typename T>
T at_maximum(const BackwardArgs<T>& a, int64_t plane, Extent e) {
  return narrow<T>(share(a, plane, e) + widen(a.d_max[plane]));
}

template <typename T>
void backward_planes(const Problem& p, const BackwardArgs<T>& a, bool stream, int64_t begin,
                     int64_t end) {
  const T zero = narrow<T>(0);
  for (int64_t plane = begin; plane < end; ++plane) {
    const Extent e = p.extent(a.valid, plane / p.channels);
    T* out = a.d_features + plane * p.plane();
    const T value = narrow<T>(share(a, plane, e));
    if (e.columns == p.width) {
      fill(out, e.cells(), value, stream);
    } else {
      for (int64_t y = 0; y < e.rows; ++y) {
        fill(out + y * p.width, e.columns, value, stream);
        fill(out + y * p.width + e.columns, p.width - e.columns, zero, stream);
      }
    }
    const int64_t done = int64_t{e.rows} * p.width;
    fill(out + done, p.plane() - done, zero, stream);
  }
  if (stream) stream_fence();  // before ordinary stores to the same lines
  for (int64_t plane = begin; plane < end; ++plane) {
    const Extent e = p.extent(a.valid, plane / p.channels);
    const int64_t index = a.index[plane];
    if (index >= 0 && index < p.plane())
      a.d_features[plane * p.plane() + index] = at_maximum(a, plane, e);
  }
}

// `line` holds two rows of channels: what a cell gets that counts, and zeros.
template <typename T>
void backward_parts(const Problem& p, const Parts& parts, const BackwardArgs<T>& a, bool stream,
                    int64_t begin, int64_t end, T* line) {
  T* zeros = line + p.channels;
  int64_t line_of = -1;
  stream = stream && reinterpret_cast<uintptr_t>(a.d_features) % kVectorBytes == 0;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / parts.per_image, start = unit % parts.per_image * parts.cells;
    const int64_t stop = start + parts.cells < p.plane() ? start + parts.cells : p.plane();
    const Extent e = p.extent(a.valid, image);
    if (image != line_of) {
      line_of = image;
      for (int64_t c = 0; c < p.channels; ++c) {
        line[c] = narrow<T>(share(a, image * p.channels + c, e));
        zeros[c] = narrow<T>(0);
      }
    }
    T* out = a.d_features + image * p.plane() * p.channels;
    for (int64_t cell = start, y = start / p.width, x = start % p.width; cell < stop; ++cell) {
      put(out + cell * p.channels, y < e.rows && x < e.columns ? line : zeros, p.channels, stream);
      if (++x == p.width) x = 0, ++y;
    }
    if (stream) stream_fence();  // before ordinary stores to the same lines
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t plane = image * p.channels + c, index = a.index[plane];
      if (index >= start && index < stop) out[index * p.channels + c] = at_maximum(a, plane, e);
    }
  }
}

}  // namespace

template <Isa isa, typename T>
void backward(const Problem& p, const Parts& parts, const BackwardArgs<T>& a, bool stream,
              int64_t begin, int64_t end, T* line) {
  if (p.channels_last)
    backward_parts(p, parts, a, stream, begin, end, line);
  else
    backward_planes(p, a, stream, begin, end);
}

#define TINYOPS_INSTANTIATE(T)                                                                \
  template void backward<kIsa, T>(const Problem&, const Parts&, const BackwardArgs<T>&, bool, \
                                  int64_t, int64_t, T*);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
TINYOPS_INSTANTIATE(half_t)
TINYOPS_INSTANTIATE(bfloat16_t)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::avg_max_pool
