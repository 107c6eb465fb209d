// The matcher against loops that say the rules as they are, on any number of threads.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../eval/match.h"
#include "../eval/parallel.h"

using namespace tinyops::eval;

namespace {

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

struct Scene {
  std::vector<int64_t> object_cell, cell;
  std::vector<double> object_box, area, box, score;
  std::vector<uint8_t> ignored, region, unfindable, outside;
  Rules rules;

  Objects objects() const {
    return {static_cast<int64_t>(area.size()),
            object_cell.data(),
            object_box.data(),
            area.data(),
            ignored.data(),
            region.data(),
            unfindable.data()};
  }
  Found found() const {
    return {static_cast<int64_t>(score.size()), cell.data(), box.data(), score.data(),
            outside.data()};
  }
};

// Corners, sizes and scores are small integers, so that much is equal.
Scene make(uint64_t seed) {
  std::mt19937_64 engine(seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(engine() % n); };
  Scene s;
  s.rules = {1 + below(4), 1 + below(3),  1 + below(3),  {0.25, 0.5, 1},
             {},           below(2) == 0, 1 + below(12), true};
  if (below(2)) s.rules.absorb = {0.25, 0.5, 0.75};
  const int64_t cells = s.rules.images * s.rules.classes, n = below(40), k = below(80);
  const auto fill = [&](int64_t count, auto& cell, auto& box) {
    for (int64_t i = 0; i < count; ++i) {
      cell.push_back(below(cells));
      for (int64_t limit : {12, 12, 8, 8}) box.push_back(static_cast<double>(below(limit)));
    }
  };
  fill(n, s.object_cell, s.object_box);
  fill(k, s.cell, s.box);
  for (int64_t i = 0; i < n; ++i) {
    s.area.push_back(static_cast<double>(below(60)));
    s.unfindable.push_back(below(10) == 0);
  }
  for (int64_t i = 0; i < n * s.rules.ranges; ++i) {
    s.ignored.push_back(below(3) == 0);
    s.region.push_back(s.ignored.back() && below(2));
  }
  for (int64_t i = 0; i < k; ++i) s.score.push_back(static_cast<double>(below(6)));
  for (int64_t i = 0; i < k * s.rules.ranges; ++i) s.outside.push_back(below(4) == 0);
  return s;
}

double overlap(const double* d, const double* g, bool region) {
  const double w = std::min(d[0] + d[2], g[0] + g[2]) - std::max(d[0], g[0]);
  const double h = std::min(d[1] + d[3], g[1] + g[3]) - std::max(d[1], g[1]);
  if (w <= 0 || h <= 0) return 0;
  return w * h / (region ? d[2] * d[3] : d[2] * d[3] + g[2] * g[3] - w * h);
}

// One cell, range and threshold: kinds and targets of its detections, best first.
void check_cell(const Scene& s, const Matches& m, int64_t first, int64_t last, int64_t range,
                int64_t t, const std::string& where) {
  const auto n = static_cast<int64_t>(s.area.size()), k = static_cast<int64_t>(s.score.size());
  const auto slots = static_cast<int64_t>(m.rows.size());
  const uint8_t* ignored = s.ignored.data() + range * n;
  const uint8_t* region = s.region.data() + range * n;
  std::vector<char> taken(n);
  std::vector<int64_t> order;  // objects of the cell, the ignored ones last
  for (int pass = 0; pass < 2; ++pass)
    for (int64_t g = 0; g < n; ++g)
      if (s.object_cell[g] == s.cell[m.rows[first]] && ignored[g] == pass) order.push_back(g);
  for (int64_t slot = first; slot < last; ++slot) {
    const int64_t row = m.rows[slot];
    const double* d = s.box.data() + 4 * row;
    const bool outside = s.outside[range * k + row];
    const int64_t at = (range * 3 + t) * slots + slot;
    if (outside && s.rules.drop_outside) {
      expect(m.kinds[at] == kLeftOut && m.targets[at] == -1, where + " dropped");
      continue;
    }
    int64_t held = -1;
    double best = std::min(s.rules.thresholds[t], 1 - 1e-10);
    bool twin = false;
    for (const int64_t g : order) {  // as pycocotools writes it
      const double o = overlap(d, s.object_box.data() + 4 * g, region[g]);
      if (taken[g] && !region[g]) {
        twin |= !ignored[g] && o >= s.rules.thresholds[t] - 1e-10;
        continue;
      }
      if (held >= 0 && !ignored[held] && ignored[g]) break;
      if (o < best) continue;
      best = o;
      held = g;
    }
    if (held < 0 && !s.rules.absorb.empty()) {
      double largest = 0;
      int64_t candidate = -1;
      for (const int64_t g : order) {
        const double o = overlap(d, s.object_box.data() + 4 * g, region[g]);
        const double share = o > 0 ? o / (1 + o) * (1 + s.area[g] / (d[2] * d[3])) : 0;
        if (!ignored[g] || share <= largest) continue;
        largest = share;
        candidate = g;
      }
      if (largest >= s.rules.absorb[t]) held = candidate;
    }
    if (held >= 0) taken[held] = 1;
    Kind kind = twin ? kDuplicate : kFalse;
    if (held >= 0 && s.unfindable[held]) kind = kFalse;
    if (outside) kind = kLeftOut;
    if (held >= 0 && !s.unfindable[held]) kind = kFound;
    if (held >= 0 && ignored[held]) kind = kLeftOut;
    expect(m.kinds[at] == kind, where + " kind");
    if (kind == kFound || (held >= 0 && ignored[held]))
      expect(m.targets[at] == held, where + " target");
  }
}

void check(uint64_t seed) {
  const Scene s = make(seed);
  const std::string where = "scene " + std::to_string(seed);
  const Matches m = match(s.objects(), s.found(), s.rules, 1);
  const auto slots = static_cast<int64_t>(m.rows.size());
  for (int64_t first = 0, last; first < slots; first = last) {
    for (last = first + 1; last < slots && m.ranks[last] > 0; ++last) {
      const double a = s.score[m.rows[last - 1]], b = s.score[m.rows[last]];
      expect(a > b || (a == b && m.rows[last - 1] < m.rows[last]), where + " order");
    }
    expect(last - first <= s.rules.most, where + " most");
    for (int64_t range = 0; range < s.rules.ranges; ++range)
      for (int64_t t = 0; t < 3; ++t) check_cell(s, m, first, last, range, t, where);
  }
  if (seed % 25) return;
  const std::vector<int64_t> positives(s.rules.ranges * s.rules.classes, 5);
  const Curves curves = accumulate(m, s.rules, positives.data(), {1, 100}, {0, 0.5, 1}, 1);
  for (int64_t threads : {2, 8}) {
    const Matches other = match(s.objects(), s.found(), s.rules, threads);
    expect(other.rows == m.rows && other.by_score == m.by_score && other.kinds == m.kinds &&
               other.targets == m.targets,
           where + " threads");
    const Curves same = accumulate(m, s.rules, positives.data(), {1, 100}, {0, 0.5, 1}, threads);
    expect(same.precision == curves.precision && same.recall == curves.recall,
           where + " threads of curves");
  }
}

void check_exceptions() {
  bool thrown = false;
  try {
    parallel_for(1000, 1, 8, [](int64_t begin, int64_t) {
      if (begin == 500) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  expect(thrown, "an exception of a thread");
}

}  // namespace

int main() {
  for (uint64_t seed = 0; seed < 1000; ++seed) check(seed);
  check_exceptions();
  if (failures == 0) std::printf("ok\n");
  return failures != 0;
}
