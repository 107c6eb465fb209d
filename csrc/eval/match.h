// Detections matched with objects, cell by cell: a cell is one class in one image.
//
// What differs between the benchmarks comes as masks and numbers, so that the rules themselves
// (sizes, flags, limits) stand in one Python file each.
#pragma once

#include <cstdint>
#include <vector>

namespace tinyops::eval {

// What becomes of a detection. As in tinyops/evaluation/details.py.
enum Kind : uint8_t { kFound, kDuplicate, kFalse, kLeftOut };

// Masks are [ranges, count]: a range is a size band with its own rules.
struct Objects {
  int64_t count = 0;
  const int64_t* cell = nullptr;     // class * images + image
  const double* box = nullptr;       // [count, 4] x y w h
  const double* area = nullptr;      // as annotated, for `Rules::absorb`
  const uint8_t* ignored = nullptr;  // detections matched with it count neither way
  const uint8_t* region = nullptr;   // where ignored: overlap is over the detection's area, and any
                                     // number of detections may have it
  const uint8_t* unfindable = nullptr;  // [count] a detection that takes it stays a false alarm
};

struct Found {
  int64_t count = 0;
  const int64_t* cell = nullptr;
  const double* box = nullptr;
  const double* score = nullptr;
  const uint8_t* outside = nullptr;  // [ranges, count] left out when it matches nothing
};

struct Rules {
  int64_t images = 0, classes = 0, ranges = 0;
  std::vector<double> thresholds;  // least overlap of a match; at most 64 of them
  // TinyBenchmark's last step: an unmatched detection goes to the ignored object of largest
  // o / (1 + o) * (1 + object.area / (w * h)), o being their overlap, if that is at least
  // absorb[threshold]. Empty: no such step.
  std::vector<double> absorb;
  bool drop_outside = false;  // detections outside take no object: they are not there
  int64_t most = 0;           // best detections of a cell that are looked at
  bool targets = false;
};

// Detections that are looked at have slots: by class, image, and falling score (equal ones in the
// order given).
struct Matches {
  std::vector<int64_t> rows;      // [slots] row of the detection
  std::vector<int32_t> ranks;     // [slots] place in its cell
  std::vector<int64_t> by_score;  // [slots] class by class, best first; equal ones by slot
  std::vector<int64_t> offsets;   // [classes + 1] slots of a class, here and in by_score
  std::vector<uint8_t> kinds;     // [ranges, thresholds, slots] Kind
  std::vector<int32_t> targets;   // likewise: row of the object or -1; empty unless asked for
};

// The best detection of a cell chooses first: of the objects that it overlaps by the threshold or
// more the one of largest overlap, the later one of equals; not ignored and free if there is one,
// else ignored. The result does not depend on the number of threads.
Matches match(const Objects& objects, const Found& found, const Rules& rules, int64_t threads);

struct Curves {
  std::vector<double> precision;  // [limits, ranges, thresholds, classes, points]
  std::vector<double> recall;     // [limits, ranges, thresholds, classes]
};

// COCO's interpolation: at every recall point the best precision at that recall or more, among the
// first limits[m] detections of every cell; and the largest recall. -1 where positives
// [ranges, classes], the numbers of objects that count, has 0.
Curves accumulate(const Matches& matches, const Rules& rules, const int64_t* positives,
                  const std::vector<int64_t>& limits, const std::vector<double>& points,
                  int64_t threads);

}  // namespace tinyops::eval
