// Checks of the values of boxes and scores on the CPU.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>

#include "../ops/boxes_check.h"

namespace tinyops {

// The first box that is not finite or has x2 < x1 or y2 < y1; -1 if there is none.
template <typename T>
int64_t first_bad_box(const Box<T>* boxes, int64_t n) {
  // A box is one vector; GCC makes the best of whatever the machine has.
  typedef T Row __attribute__((vector_size(4 * sizeof(T))));
  using Mask = decltype(Row{} < Row{});
  constexpr T kLargest = std::numeric_limits<T>::max();
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    Mask good = Row{} == Row{};
    for (int64_t k = begin; k < end; ++k) {
      Row row;
      std::memcpy(&row, boxes + k, sizeof(row));  // not aligned
      const Row corner = __builtin_shuffle(row, Mask{2, 3, 2, 3});
      good &= (row <= corner) & (row >= -kLargest) & (row <= kLargest);
    }
    if (good[0] && good[1] && good[2] && good[3]) [[likely]]
      continue;
    for (int64_t k = begin; k < end; ++k) {
      const Box<T>& b = boxes[k];
      const bool finite =
          b.x1 >= -kLargest && b.y1 >= -kLargest && b.x2 <= kLargest && b.y2 <= kLargest;
      if (!(finite && b.x1 <= b.x2 && b.y1 <= b.y2)) return k;
    }
  }
  return -1;
}

template <typename T>
int64_t first_nan(const T* values, int64_t n) {
  constexpr int64_t kBlock = 256;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    int bad = 0;
    for (int64_t k = begin; k < end; ++k) bad |= values[k] != values[k];
    if (!bad) [[likely]]
      continue;
    for (int64_t k = begin; k < end; ++k)
      if (values[k] != values[k]) return k;
  }
  return -1;
}

template <typename T>
void check_box_values_cpu(const char* op, const char* name, const Box<T>* boxes, int64_t n) {
  const int64_t bad = first_bad_box(boxes, n);
  if (bad >= 0) refuse_box(op, name, boxes[bad], bad);
}
template <typename T>
void check_no_nan_cpu(const char* op, const char* name, const T* values, int64_t n) {
  const int64_t bad = first_nan(values, n);
  if (bad >= 0) refuse_nan(op, name, bad);
}

}  // namespace tinyops
