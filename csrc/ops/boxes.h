// A row of boxes [K, 4]: absolute x1 y1 x2 y2, and what CPU and CUDA kernels compute from it.
//
// The files that include this are compiled without contraction (no fused multiply-add), so that an
// overlap has the same bits on every device, and those of torchvision.
#pragma once
#include "../common.h"

namespace tinyops {

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

template <typename T>
TINYOPS_HD T area(const Box<T>& b) {
  return (b.x2 - b.x1) * (b.y2 - b.y1);
}

template <typename T>
TINYOPS_HD T larger(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
TINYOPS_HD T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
TINYOPS_HD T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
  const T height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
  return larger(width, T(0)) * larger(height, T(0));
}

}  // namespace tinyops
