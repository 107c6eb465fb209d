#include "match.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel.h"

namespace tinyops::eval {

namespace {

constexpr int64_t kGrain = 16;  // cells; small enough for 100 images on many threads

// Rows by cell, in the order given: those of cell c are rows[first[c]] to rows[first[c + 1]].
struct Grouped {
  std::vector<int64_t> first, rows;
};

Grouped group(const int64_t* cell, int64_t count, int64_t cells) {
  Grouped result{std::vector<int64_t>(cells + 1), std::vector<int64_t>(count)};
  auto& first = result.first;
  for (int64_t k = 0; k < count; ++k) ++first[cell[k] + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  for (int64_t k = 0; k < count; ++k) result.rows[first[cell[k]]++] = k;
  for (int64_t c = cells; c > 0; --c) first[c] = first[c - 1];  // they ran up to the next one
  first[0] = 0;
  return result;
}

struct Pair {
  int32_t object;  // index in the cell
  double iou, iod;
};

class CellMatcher {  // scratch memory of one thread
 public:
  CellMatcher(const Objects& objects, const Found& found, const Rules& rules, Matches& matches)
      : objects_(objects), found_(found), rules_(rules), matches_(matches) {
    for (const double t : rules.thresholds) limits_.push_back(std::min(t, 1 - 1e-10));
    lowest_ = *std::min_element(limits_.begin(), limits_.end());
  }

  // `rows` are the objects of a cell, its detections the slots from `begin` to `end`.
  void run(const int64_t* rows, int64_t count, int64_t begin, int64_t end) {
    rows_ = rows;
    count_ = count;
    find_pairs(begin, end);
    for (int64_t range = 0; range < rules_.ranges; ++range) {
      const uint8_t* outside = found_.outside + range * found_.count;
      select(range);
      for (int64_t slot = begin; slot < end; ++slot) {
        const int64_t row = matches_.rows[slot];
        choose(range, slot, row, first_pair_[slot - begin], first_pair_[slot - begin + 1],
               outside[row]);
      }
    }
  }

 private:
  struct Choice {
    Kind kind;
    int32_t object;  // index in the cell, or -1
  };

  // All pairs that can matter, by detection and object. Objects sorted by their left side and the
  // largest right side so far bound those that a detection can meet.
  void find_pairs(int64_t begin, int64_t end) {
    by_left_.resize(count_);
    reach_.resize(count_);
    std::iota(by_left_.begin(), by_left_.end(), 0);
    const auto box = [this](int32_t g) { return objects_.box + 4 * rows_[g]; };
    std::sort(by_left_.begin(), by_left_.end(),
              [&](int32_t a, int32_t b) { return box(a)[0] < box(b)[0]; });
    double reach = -HUGE_VAL;
    for (int64_t k = 0; k < count_; ++k) {
      const double* g = box(by_left_[k]);
      reach_[k] = reach = std::max(reach, g[0] + g[2]);
    }
    pairs_.clear();
    first_pair_.assign(1, 0);
    for (int64_t slot = begin; slot < end; ++slot) {
      const double* d = found_.box + 4 * matches_.rows[slot];
      const double right = d[0] + d[2], bottom = d[1] + d[3];
      const auto start = std::upper_bound(reach_.begin(), reach_.end(), d[0]);
      for (int64_t k = start - reach_.begin(); k < count_; ++k) {
        const double* g = box(by_left_[k]);
        if (g[0] >= right) break;
        const double w = std::fmin(right, g[0] + g[2]) - std::fmax(d[0], g[0]);
        const double h = std::fmin(bottom, g[1] + g[3]) - std::fmax(d[1], g[1]);
        if (!(w > 0 && h > 0)) continue;
        const double common = w * h, area = d[2] * d[3];
        const double iou = common / (area + g[2] * g[3] - common), iod = common / area;
        if (std::max(iou, iod) >= lowest_ || !rules_.absorb.empty())
          pairs_.push_back({by_left_[k], iou, iod});
      }
      std::sort(pairs_.begin() + first_pair_.back(), pairs_.end(),
                [](const Pair& a, const Pair& b) { return a.object < b.object; });
      first_pair_.push_back(static_cast<int64_t>(pairs_.size()));
    }
  }

  void select(int64_t range) {
    taken_.assign(count_, 0);
    ignored_.resize(count_);
    region_.resize(count_);
    for (int64_t g = 0; g < count_; ++g) {
      ignored_[g] = objects_.ignored[range * objects_.count + rows_[g]];
      region_[g] = objects_.region[range * objects_.count + rows_[g]];
    }
  }

  void choose(int64_t range, int64_t slot, int64_t row, int64_t first, int64_t last, bool outside) {
    const int64_t slots = static_cast<int64_t>(matches_.rows.size());
    const auto thresholds = static_cast<int64_t>(limits_.size());
    const bool skip = first == last || (outside && rules_.drop_outside);
    for (int64_t t = 0; t < thresholds; ++t) {
      const Choice choice =
          skip ? Choice{outside ? kLeftOut : kFalse, -1} : best(t, row, first, last, outside);
      const int64_t at = (range * thresholds + t) * slots + slot;
      matches_.kinds[at] = choice.kind;
      if (rules_.targets)
        matches_.targets[at] = choice.object < 0 ? -1 : static_cast<int32_t>(rows_[choice.object]);
    }
  }

  Choice best(int64_t t, int64_t row, int64_t first, int64_t last, bool outside) {
    const uint64_t bit = uint64_t{1} << t;
    int32_t held = -1, twin = -1;
    double overlap = limits_[t], of_twin = limits_[t];
    for (int64_t k = first; k < last; ++k) {
      const auto& [g, iou, iod] = pairs_[k];
      if (ignored_[g]) continue;
      if (!(taken_[g] & bit) && iou >= overlap) {
        overlap = iou;
        held = g;
      } else if ((taken_[g] & bit) && iou >= of_twin) {
        of_twin = iou;
        twin = g;
      }
    }
    if (held < 0) held = best_ignored(t, row, first, last);
    if (held >= 0) {
      taken_[held] |= bit;
      if (ignored_[held]) return {kLeftOut, held};
      if (!objects_.unfindable[rows_[held]]) return {kFound, held};
      twin = -1;
    }
    if (outside) return {kLeftOut, -1};
    return twin < 0 ? Choice{kFalse, -1} : Choice{kDuplicate, twin};
  }

  int32_t best_ignored(int64_t t, int64_t row, int64_t first, int64_t last) const {
    const uint64_t bit = uint64_t{1} << t;
    int32_t held = -1;
    double overlap = limits_[t];
    for (int64_t k = first; k < last; ++k) {
      const auto& [g, iou, iod] = pairs_[k];
      if (!ignored_[g] || (!region_[g] && (taken_[g] & bit))) continue;
      const double o = region_[g] ? iod : iou;
      if (o < overlap) continue;
      overlap = o;
      held = g;
    }
    if (held >= 0 || rules_.absorb.empty()) return held;
    const double area = found_.box[4 * row + 2] * found_.box[4 * row + 3];
    double largest = 0;
    for (int64_t k = first; k < last; ++k) {
      const auto& [g, iou, iod] = pairs_[k];
      if (!ignored_[g]) continue;
      const double o = region_[g] ? iod : iou;
      const double share = o / (1 + o) * (1 + objects_.area[rows_[g]] / area);
      if (!(share > largest)) continue;  // the first of equals
      largest = share;
      held = g;
    }
    return largest >= rules_.absorb[t] ? held : -1;
  }

  const Objects& objects_;
  const Found& found_;
  const Rules& rules_;
  Matches& matches_;
  std::vector<double> limits_;
  double lowest_;
  const int64_t* rows_ = nullptr;  // objects of the cell; all that follows counts within it
  int64_t count_ = 0;
  std::vector<int32_t> by_left_;
  std::vector<double> reach_;
  std::vector<Pair> pairs_;
  std::vector<int64_t> first_pair_;
  std::vector<uint64_t> taken_;  // bit t: at threshold t
  std::vector<uint8_t> ignored_, region_;
};

struct Scored {
  double score;
  int64_t place;
  bool operator<(const Scored& other) const {
    return score != other.score ? score > other.score : place < other.place;
  }
};

// Gives the best of every cell their slots; returns the first slot of every cell.
std::vector<int64_t> rank(const Found& found, const Rules& rules, Matches& matches,
                          int64_t threads) {
  const int64_t cells = rules.classes * rules.images;
  const Grouped grouped = group(found.cell, found.count, cells);
  std::vector<int64_t> first(cells + 1);
  for (int64_t c = 0; c < cells; ++c)
    first[c + 1] = first[c] + std::min(grouped.first[c + 1] - grouped.first[c], rules.most);
  matches.rows.resize(first[cells]);
  matches.ranks.resize(first[cells]);
  parallel_for(cells, kGrain, threads, [&](int64_t begin, int64_t end) {
    std::vector<Scored> order;
    for (int64_t c = begin; c < end; ++c) {
      order.clear();
      for (int64_t k = grouped.first[c]; k < grouped.first[c + 1]; ++k)
        order.push_back({found.score[grouped.rows[k]], grouped.rows[k]});
      std::sort(order.begin(), order.end());
      for (int64_t slot = first[c]; slot < first[c + 1]; ++slot) {
        matches.rows[slot] = order[slot - first[c]].place;
        matches.ranks[slot] = static_cast<int32_t>(slot - first[c]);
      }
    }
  });
  for (int64_t k = 0; k <= rules.classes; ++k) matches.offsets.push_back(first[k * rules.images]);
  matches.by_score.resize(first[cells]);
  parallel_for(rules.classes, 1, threads, [&](int64_t begin, int64_t end) {
    std::vector<Scored> order;
    const int64_t base = matches.offsets[begin];
    for (int64_t slot = base; slot < matches.offsets[end]; ++slot)
      order.push_back({found.score[matches.rows[slot]], slot});
    std::sort(order.begin(), order.end());
    for (size_t k = 0; k < order.size(); ++k) matches.by_score[base + k] = order[k].place;
  });
  return first;
}

}  // namespace

Matches match(const Objects& objects, const Found& found, const Rules& rules, int64_t threads) {
  const int64_t cells = rules.classes * rules.images;
  const Grouped wanted = group(objects.cell, objects.count, cells);
  Matches matches;
  const std::vector<int64_t> first = rank(found, rules, matches, threads);
  const size_t size = matches.rows.size() * rules.ranges * rules.thresholds.size();
  matches.kinds.resize(size);
  matches.targets.resize(rules.targets ? size : 0);
  parallel_for(cells, kGrain, threads, [&](int64_t begin, int64_t end) {
    CellMatcher matcher(objects, found, rules, matches);
    for (int64_t c = begin; c < end; ++c)
      if (first[c] < first[c + 1])
        matcher.run(wanted.rows.data() + wanted.first[c], wanted.first[c + 1] - wanted.first[c],
                    first[c], first[c + 1]);
  });
  return matches;
}

Curves accumulate(const Matches& matches, const Rules& rules, const int64_t* positives,
                  const std::vector<int64_t>& limits, const std::vector<double>& points,
                  int64_t threads) {
  const int64_t slots = static_cast<int64_t>(matches.rows.size()), classes = rules.classes;
  const auto planes = rules.ranges * static_cast<int64_t>(rules.thresholds.size());
  const auto results = static_cast<int64_t>(limits.size()) * planes * classes;
  const auto width = static_cast<int64_t>(points.size());
  Curves curves{std::vector<double>(results * width, -1), std::vector<double>(results, -1)};
  parallel_for(results, 1, threads, [&](int64_t begin, int64_t end) {
    std::vector<double> precision;  // where the n-th object was found
    for (int64_t at = begin; at < end; ++at) {
      const int64_t k = at % classes, plane = at / classes % planes;
      const int64_t limit = limits[at / classes / planes];
      const auto range = plane / static_cast<int64_t>(rules.thresholds.size());
      const auto objects = static_cast<double>(positives[range * classes + k]);
      if (objects == 0) continue;
      precision.clear();
      double counted = 0;
      for (int64_t n = matches.offsets[k]; n < matches.offsets[k + 1]; ++n) {
        const int64_t slot = matches.by_score[n];
        const uint8_t kind = matches.kinds[plane * slots + slot];
        if (kind == kLeftOut || matches.ranks[slot] >= limit) continue;
        ++counted;
        if (kind == kFound)  // the epsilon is pycocotools'
          precision.push_back(static_cast<double>(precision.size() + 1) / (counted + 0x1p-52));
      }
      for (size_t n = precision.size(); n-- > 1;)
        precision[n - 1] = std::max(precision[n - 1], precision[n]);
      curves.recall[at] = static_cast<double>(precision.size()) / objects;
      size_t n = 0;
      for (int64_t p = 0; p < width; ++p) {
        while (n < precision.size() && static_cast<double>(n + 1) / objects < points[p]) ++n;
        curves.precision[at * width + p] = n < precision.size() ? precision[n] : 0;
      }
    }
  });
  return curves;
}

}  // namespace tinyops::eval
