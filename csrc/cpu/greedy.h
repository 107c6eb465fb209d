// Greedy suppression, best box first: the heart of nms and stitch_tiles on the CPU.
#pragma once
#include <cstdint>
#include <functional>

#include "../ops/boxes.h"

namespace tinyops::greedy {

enum class Rule : int {
  kIou = 0,     // a box goes if its IoU with a kept one is above iou_threshold
  kIos = 1,     // ... its intersection over the smaller area
  kStitch = 2,  // tiles differ, and IoU > iou_threshold, or truncated and IoS > ios_threshold
};

template <typename T>
struct Problem {
  const Box<T>* boxes;   // [n], in the order of the input
  const int32_t* order;  // [n], indices of boxes, best first
  int64_t n;
  Rule rule;
  double iou_threshold;                // kIos: the threshold of that
  double ios_threshold = 0;            // kStitch
  int offset = 0;                      // 1: the legacy convention, widths are x2 - x1 + 1
  const int64_t* labels = nullptr;     // [n] or null; boxes of different labels never meet
  const int64_t* image_ids = nullptr;  // [n] or null; nor do boxes of different images
  const int32_t* tiles = nullptr;      // [n], kStitch
  const uint8_t* truncated = nullptr;  // [n] of 0 and 1, kStitch; in `order` they come last
  int64_t* compared = nullptr;         // if given, buckets of 8 boxes that were compared are added
};

// run(n, body) calls body(0) to body(n - 1), several at a time if `threads` is more than 1.
struct Parallel {
  int64_t threads = 1;
  int64_t least = 0;  // number of boxes below which only one is used
  std::function<void(int64_t n, const std::function<void(int64_t)>& body)> run =
      [](int64_t n, const std::function<void(int64_t)>& body) {
        for (int64_t k = 0; k < n; ++k) body(k);
      };
};

// Writes the indices of the kept boxes, best first, at most `most` of them; returns how many.
template <typename T>
int64_t suppress(const Problem<T>& p, int64_t* keep, int64_t most, const Parallel& parallel);

// The indices of n scores (none NaN) from highest to lowest, equal ones by lower index.
template <typename T>
void rank(const T* scores, int64_t n, int32_t* order);

}  // namespace tinyops::greedy
