// How kernels look things up in a grid of boxes (box_grid.h).
#pragma once
#include <cuda_runtime.h>

#include <cstring>

#include "box_grid.h"

namespace tinyops {

namespace grid {

// Level l holds boxes whose longer side is below 2^(kLowest + 2l + 1) and, save for level 0, at
// least a quarter of that. The last level holds all larger ones; its cells would bound nothing.
constexpr int kLowest = -40, kLevels = 64;
constexpr int kFar = 1 << 29;  // cell numbers stay within +-kFar

// The level of boxes with this longer side; infinity and NaN are on the last.
__device__ inline int level_of(float side) {
  uint32_t bits;
  memcpy(&bits, &side, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 126;  // |side| < 2^exponent
  const int level = (exponent - kLowest) >> 1;
  return level < 0 ? 0 : level < kLevels ? level : kLevels - 1;
}
__device__ inline int level_of(double side) {
  uint64_t bits;
  memcpy(&bits, &side, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1022;
  const int level = (exponent - kLowest) >> 1;
  return level < 0 ? 0 : level < kLevels ? level : kLevels - 1;
}

// 2^k; every cell size and its inverse is a normal float32.
__device__ inline float power_of_two(int k, float) {
  const uint32_t bits = static_cast<uint32_t>(k + 127) << 23;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
__device__ inline double power_of_two(int k, double) {
  const uint64_t bits = static_cast<uint64_t>(k + 1023) << 52;
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
__device__ inline int cell_exponent(int level) {
  return kLowest + 2 * level + 1;
}

// Rises with x, which is all that the search relies on. NaN: -kFar.
template <typename T>
__device__ int cell_of(T x, T inverse_size) {
  const T cell = floor(x * inverse_size);
  return cell > T(-kFar) ? cell < T(kFar) ? static_cast<int>(cell) : kFar : -kFar;
}

// The finaliser of MurmurHash3 (Appleby, public domain).
__device__ inline uint32_t mix(uint32_t h) {
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h ^ h >> 16;
}
__device__ inline uint32_t bucket_of(int level, int x, int y, uint32_t group, int bits) {
  const uint32_t h = static_cast<uint32_t>(x) * 0x9e3779b1u ^ mix(static_cast<uint32_t>(y) + group);
  return mix(h + static_cast<uint32_t>(level) * 0x27d4eb2fu) >> (32 - bits);
}
// Of label and image.
__device__ inline uint32_t group_of(const Ids& ids, int index) {
  uint64_t h = 0;
  if (ids.labels) h = static_cast<uint64_t>(ids.labels[index]) * 0x9e3779b97f4a7c15u;
  if (ids.image_ids)
    h = (h ^ h >> 32 ^ static_cast<uint64_t>(ids.image_ids[index])) * 0xd6e8feb86659fd93u;
  return static_cast<uint32_t>(h >> 32);
}
__device__ inline bool same_group(const Ids& ids, int a, int b) {
  return (!ids.labels || ids.labels[a] == ids.labels[b]) &&
         (!ids.image_ids || ids.image_ids[a] == ids.image_ids[b]);
}

template <typename T>
__device__ T width_of(const Box<T>& b, T offset) {
  return b.x2 - b.x1 + offset;
}
template <typename T>
__device__ T height_of(const Box<T>& b, T offset) {
  return b.y2 - b.y1 + offset;
}
// No sum of large coordinates, which might overflow.
template <typename T>
__device__ T middle(T a, T b) {
  return T(0.5) * a + T(0.5) * b;
}

}  // namespace grid

// Visits the ranks of all boxes, maybe more than once, whose intersection with `box` is above 0
// and whose IoU with it is above min_iou; and of others. Where that would be more cells than there
// are ranks below `end`, it visits those ranks one by one.
//
//   Walk<T> walk(grid, box, group, min_iou, end);
//   do {
//     for (; walk.on_candidate(); walk.skip()) use(walk.rank(grid));  // some are >= end
//   } while (walk.next_cell(grid));
template <typename T>
class Walk {
 public:
  __device__ Walk(const Grid<T>& g, const Box<T>& box, uint32_t group, T min_iou, int end)
      : group_(group) {
    width_ = grid::width_of(box, g.offset);
    height_ = grid::height_of(box, g.offset);
    x_ = grid::middle(box.x1, box.x2);
    y_ = grid::middle(box.y1, box.y2);
    // Rounding of x_, of the other centre and of the sums below, in units of the coordinates.
    constexpr T kRounding = sizeof(T) == 4 ? T(0x1p-20) : T(0x1p-49);
    slack_x_ = kRounding * (abs_(box.x1) + abs_(box.x2) + width_);
    slack_y_ = kRounding * (abs_(box.y1) + abs_(box.y2) + height_);
    // What follows from IoU > min_iou holds for exact numbers. It is used where rounding changes
    // the IoU by far less than the factor below, so not where areas may be denormal or infinite.
    const T area = width_ * height_;
    const bool ordinary = area >= T(0x1p-80) && area <= T(0x1p100) && min_iou > T(1e-5);
    min_iou_ = ordinary ? min_iou * T(1 - 1e-5) : T(0);
    levels_ = *g.levels;
    if (ordinary) {  // either longer side is at least min_iou times the other
      const T side = larger(width_, height_);
      levels_ &= ~0ull << grid::level_of(side * min_iou_);
      levels_ &= ~0ull >> (grid::kLevels - 1 - grid::level_of(side / min_iou_));
    }
    float cells = 0;
    for (unsigned long long left = levels_; left; left &= left - 1) {
      set_level(__ffsll(static_cast<long long>(left)) - 1);
      cells += static_cast<float>(x1_ - x0_ + 1) * static_cast<float>(y1_ - y0_ + 1);
    }
    one_by_one_ = levels_ >> (grid::kLevels - 1) || !(cells < static_cast<float>(end));
    at_ = 0;
    end_ = one_by_one_ ? end : 0;
    if (one_by_one_) levels_ = 0;
    cell_x_ = x1_ = 0;  // the first step leads to the first level
    cell_y_ = y1_ = 0;
  }

  __device__ bool on_candidate() const { return at_ < end_; }
  __device__ int rank(const Grid<T>& g) const { return one_by_one_ ? at_ : g.ranks[at_]; }
  __device__ void skip() { ++at_; }
  // The rest of this cell: ranks rise inside a cell.
  __device__ void skip_cell() { at_ = end_; }

  // To the next cell, which may be empty; false after the last.
  __device__ bool next_cell(const Grid<T>& g) {
    if (cell_x_ < x1_) {
      ++cell_x_;
    } else if (cell_y_ < y1_) {
      cell_x_ = x0_;
      ++cell_y_;
    } else {
      if (!levels_) return false;
      set_level(__ffsll(static_cast<long long>(levels_)) - 1);
      levels_ &= levels_ - 1;
      cell_x_ = x0_;
      cell_y_ = y0_;
    }
    const int2 bucket = g.buckets[grid::bucket_of(level_, cell_x_, cell_y_, group_, g.bits)];
    at_ = bucket.x;
    end_ = bucket.y;
    return true;
  }

 private:
  __device__ static T abs_(T x) { return x < 0 ? -x : x; }

  // How far apart centres may be along an axis on which this box has length `own` and the other at
  // most `most`. The overlap along it is at most (own + other) / 2 - distance, and at least
  // min_iou * max(own, other), because IoU <= overlap / max(own, other).
  __device__ T reach(T own, T most) const {
    if (min_iou_ > 0) most = smaller(most, own / min_iou_);
    if (min_iou_ >= T(0.5)) most = smaller(most, own);
    return larger(T(0), T(0.5) * own + T(0.5) * most - min_iou_ * larger(own, most));
  }
  __device__ void set_level(int level) {
    constexpr T kMore = T(1 + 1e-5);
    const int exponent = grid::cell_exponent(level);
    const T size = grid::power_of_two(exponent, T()), inverse = grid::power_of_two(-exponent, T());
    level_ = level;
    const T dx = reach(width_, size) * kMore + slack_x_ + size * T(1e-5);
    const T dy = reach(height_, size) * kMore + slack_y_ + size * T(1e-5);
    x0_ = grid::cell_of(x_ - dx, inverse);
    x1_ = grid::cell_of(x_ + dx, inverse);
    y0_ = grid::cell_of(y_ - dy, inverse);
    y1_ = grid::cell_of(y_ + dy, inverse);
  }

  int at_, end_;  // in the bucket, or ranks
  bool one_by_one_;
  int level_ = 0, cell_x_, cell_y_, x0_ = 0, x1_, y0_ = 0, y1_;
  unsigned long long levels_;  // that are left
  uint32_t group_;
  T x_, y_, width_, height_, slack_x_, slack_y_, min_iou_;
};

}  // namespace tinyops
