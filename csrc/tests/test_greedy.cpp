// The greedy suppression against a double loop, and how its work grows with the number of boxes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/greedy.h"

using namespace tinyops;
using namespace tinyops::greedy;

namespace {

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double uniform(double low, double high) { return low + (high - low) * unit(); }
  double normal(double sigma) {
    return sigma * std::sqrt(-2 * std::log(1 - unit())) * std::cos(6.283185307179586 * unit());
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(unit() * static_cast<double>(n)); }

 private:
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  std::mt19937_64 engine_;
};

template <typename T>
struct Layout {
  std::vector<Box<T>> boxes;
  std::vector<T> scores;
  void add(double x, double y, double w, double h, double score) {
    boxes.push_back({static_cast<T>(x - w / 2), static_cast<T>(y - h / 2),
                     static_cast<T>(x + w / 2), static_cast<T>(y + h / 2)});
    scores.push_back(static_cast<T>(score));
  }
};

// Each makes n boxes; densities do not depend on n, except where the name says so.
template <typename T>
using Maker = Layout<T> (*)(int64_t n, Random& random);
template <typename T>
struct Makers {
  static Layout<T> uniform(int64_t n, Random& r) {
    Layout<T> l;
    const double side = 16 * std::sqrt(n);
    for (int64_t k = 0; k < n; ++k)
      l.add(r.uniform(0, side), r.uniform(0, side), r.uniform(2, 20), r.uniform(2, 20),
            r.uniform(0, 1));
    return l;
  }
  static Layout<T> proposals(int64_t n, Random& r, double side) {
    Layout<T> l;
    while (static_cast<int64_t>(l.boxes.size()) < n) {
      const double x = r.uniform(0, side), y = r.uniform(0, side), w = r.uniform(3, 20),
                   h = r.uniform(3, 20);
      for (int k = 0; k < 10 && static_cast<int64_t>(l.boxes.size()) < n; ++k)
        l.add(x + r.normal(.15) * w, y + r.normal(.15) * h, w * std::exp(r.normal(.15)),
              h * std::exp(r.normal(.15)), r.uniform(0, 1));
    }
    return l;
  }
  static Layout<T> duplicates(int64_t n, Random& r) { return proposals(n, r, 5 * std::sqrt(n)); }
  static Layout<T> one_place(int64_t n, Random& r) { return proposals(n, r, 200); }
  static Layout<T> identical(int64_t n, Random& r) {
    Layout<T> l;
    for (int64_t k = 0; k < n; ++k) l.add(5, 5, 8, 9, r.uniform(0, 1));
    return l;
  }
  static Layout<T> touching(int64_t n, Random& r) {
    Layout<T> l;
    for (int64_t k = 0; k < n; ++k) l.add(static_cast<double>(4 * k), 2, 4, 4, r.uniform(0, 1));
    return l;
  }
  static Layout<T> all_sizes(int64_t n, Random& r) {
    Layout<T> l;
    const double side = 400 * std::sqrt(n);
    for (int64_t k = 0; k < n; ++k) {
      const double size = std::exp(r.uniform(0, 7));
      l.add(r.uniform(0, side), r.uniform(0, side), size, size * r.uniform(.7, 1.4),
            r.uniform(0, 1));
    }
    return l;
  }
  static Layout<T> thin(int64_t n, Random& r) {
    Layout<T> l;
    const double side = 100 * std::sqrt(n);
    for (int64_t k = 0; k < n; ++k) {
      const bool tall = r.below(2);
      l.add(r.uniform(0, side), r.uniform(0, side), tall ? 1 : 500, tall ? 500 : 1,
            r.uniform(0, 1));
    }
    return l;
  }
  static Layout<T> outliers(int64_t n, Random& r) {
    Layout<T> l = uniform(n, r);
    for (const double far : {1e6, 1e9, 1e30}) {
      l.add(far, -far, 10, 10, r.uniform(0, 1));
      l.add(0, 0, far, far, r.uniform(0, .1));
    }
    return l;
  }
  static Layout<T> small_in_big(int64_t n, Random& r) {  // 1 px and 300 px, in the same places
    Layout<T> l;
    const double side = 10 * std::sqrt(n);
    for (int64_t k = 0; k < n; ++k) {
      const double size = r.below(2) ? r.uniform(.5, 1.5) : r.uniform(250, 350);
      l.add(r.uniform(0, side), r.uniform(0, side), size, size, r.uniform(0, 1));
    }
    return l;
  }
  static Layout<T> padded(int64_t n, Random& r) {  // rows of zeros, and points elsewhere
    Layout<T> l = uniform(n, r);
    for (int64_t k = 0; k < n; k += 19)
      l.boxes[k] = k % 2 ? Box<T>{0, 0, 0, 0} : Box<T>{1, 1, 1, 1};
    return l;
  }
  static Layout<T> specks(int64_t n, Random& r) {
    Layout<T> l = uniform(n, r);
    for (int64_t k = 0; k < n; k += 21) l.boxes[k] = {0, 0, T(1e-3), T(1e-3)};
    return l;
  }
  static Layout<T> grid_points(int64_t n, Random& r) {  // ties in everything, and empty boxes
    Layout<T> l;
    for (int64_t k = 0; k < n; ++k) {
      const double w = static_cast<double>(r.below(6)), h = static_cast<double>(r.below(6));
      l.add(static_cast<double>(r.below(40)) + w / 2, static_cast<double>(r.below(40)) + h / 2, w,
            h, static_cast<double>(r.below(5)));
    }
    return l;
  }
};

template <typename T>
const std::vector<std::pair<const char*, Maker<T>>> kMakers = {
    {"uniform", Makers<T>::uniform},
    {"duplicates", Makers<T>::duplicates},
    {"one place", Makers<T>::one_place},
    {"identical", Makers<T>::identical},
    {"touching", Makers<T>::touching},
    {"all sizes", Makers<T>::all_sizes},
    {"thin", Makers<T>::thin},
    {"outliers", Makers<T>::outliers},
    {"small in big", Makers<T>::small_in_big},
    {"grid points", Makers<T>::grid_points},
    {"padded", Makers<T>::padded},
    {"specks", Makers<T>::specks},
};

template <typename T>
bool goes(const Problem<T>& p, int32_t better, int32_t worse) {
  const Box<T>&a = p.boxes[better], &b = p.boxes[worse];
  const T one = static_cast<T>(p.offset);
  const T zero = 0;
  if (p.labels && p.labels[better] != p.labels[worse]) return false;
  if (p.rule == Rule::kStitch && p.tiles[better] == p.tiles[worse]) return false;
  const T inter = std::max(zero, std::min(a.x2, b.x2) - std::max(a.x1, b.x1) + one) *
                  std::max(zero, std::min(a.y2, b.y2) - std::max(a.y1, b.y1) + one);
  const T first = (a.x2 - a.x1 + one) * (a.y2 - a.y1 + one);
  const T second = (b.x2 - b.x1 + one) * (b.y2 - b.y1 + one);
  const double iou = inter / (first + second - inter), ios = inter / std::min(first, second);
  if (p.rule == Rule::kIos) return ios > p.iou_threshold;
  const bool inside = p.rule == Rule::kStitch && p.truncated[worse] && ios > p.ios_threshold;
  return iou > p.iou_threshold || inside;
}

template <typename T>
std::vector<int64_t> double_loop(const Problem<T>& p) {
  std::vector<int64_t> keep;
  for (int64_t k = 0; k < p.n; ++k) {
    const auto covers = [&](int64_t better) {
      return goes(p, static_cast<int32_t>(better), p.order[k]);
    };
    if (std::none_of(keep.begin(), keep.end(), covers)) keep.push_back(p.order[k]);
  }
  return keep;
}

template <typename T>
std::vector<int32_t> ranked(const std::vector<T>& scores) {
  std::vector<int32_t> order(scores.size());
  rank(scores.data(), static_cast<int64_t>(scores.size()), order.data());
  return order;
}

Parallel threads(int64_t count) {
  return {count, 0, [](int64_t n, const std::function<void(int64_t)>& body) {
            std::vector<std::thread> all;
            for (int64_t k = 0; k < n; ++k) all.emplace_back([&, k] { body(k); });
            for (std::thread& t : all) t.join();
          }};
}

template <typename T>
void check_values() {
  Random random(1);
  for (const auto& [name, make] : kMakers<T>) {
    for (const int64_t n : {1, 7, 64, 65, 300, 900}) {
      const Layout<T> l = make(n, random);
      std::vector<int32_t> order = ranked(l.scores);
      for (size_t k = 1; k < order.size(); ++k) {
        const T a = l.scores[order[k - 1]], b = l.scores[order[k]];
        expect(a > b || (a == b && order[k - 1] < order[k]), std::string("rank ") + name);
      }
      const auto count = static_cast<int64_t>(order.size());
      std::vector<int64_t> labels(count), keep(count);
      std::vector<int32_t> tiles(count);
      std::vector<uint8_t> truncated(count);
      for (int64_t k = 0; k < count; ++k) {
        labels[k] = (random.below(3) - 1) * (int64_t{1} << (n % 2 ? 40 : 0));
        tiles[k] = static_cast<int32_t>(random.below(4));
        truncated[k] = random.below(3) == 0;
      }
      for (int variant = 0; variant < 8; ++variant) {
        for (const double threshold : {0.0, 0.005, 0.1, 0.5, 0.75, 1.0}) {
          Problem<T> p{l.boxes.data(), order.data(), count, Rule::kIou, threshold};
          if (variant == 1 || variant == 3) p.offset = 1;
          if (variant == 2 || variant == 3) p.rule = Rule::kIos;
          if (variant >= 6) p.labels = labels.data();
          if (variant == 4 || variant == 5 || variant == 7) {
            p.rule = Rule::kStitch;
            p.ios_threshold = variant == 5 ? 0.9 : 0.5;
            p.tiles = tiles.data();
            p.truncated = truncated.data();
            std::stable_partition(order.begin(), order.end(),
                                  [&](int32_t k) { return !truncated[k]; });
          }
          keep.resize(count);
          keep.resize(suppress(p, keep.data(), count, Parallel{}));
          expect(keep == double_loop(p), std::string(name) + " " + std::to_string(n) + " variant " +
                                             std::to_string(variant) + " threshold " +
                                             std::to_string(threshold));
        }
      }
    }
  }
}

// Tiles, of which the boxes that are cut come last.
void check_threads_stitching() {
  Random random(4);
  const Layout<float> l = Makers<float>::duplicates(30000, random);
  std::vector<int32_t> order = ranked(l.scores), tiles(order.size());
  std::vector<uint8_t> truncated(order.size());
  std::vector<Box<float>> boxes = l.boxes;
  for (size_t k = 0; k < boxes.size(); ++k) {
    tiles[k] = static_cast<int32_t>(random.below(4));
    truncated[k] = random.below(3) == 0;
    if (truncated[k] && random.below(20) == 0) boxes[k].y2 += 100;
  }
  std::stable_partition(order.begin(), order.end(), [&](int32_t k) { return !truncated[k]; });
  const auto n = static_cast<int64_t>(order.size());
  Problem<float> p{boxes.data(), order.data(), n, Rule::kStitch, 0.5};
  p.ios_threshold = 0.5;
  p.tiles = tiles.data();
  p.truncated = truncated.data();
  std::vector<int64_t> one(n), several(n);
  one.resize(suppress(p, one.data(), n, Parallel{}));
  for (const int64_t count : {2, 7}) {
    several.resize(n);
    several.resize(suppress(p, several.data(), n, threads(count)));
    expect(one == several, "stitching on " + std::to_string(count) + " threads");
  }
}

// Without value checks anything may come: it must end, and touch no other memory.
void check_no_boxes_at_all() {
  Random random(5);
  const double kOdd[] = {0, -1, 1e38, -1e38, HUGE_VAL, -HUGE_VAL, NAN, 1e-44, 1.5e7, 3};
  for (const double threshold : {0.0, 0.02, 0.5}) {
    for (const int64_t odd : {2, 20}) {
      Layout<float> l = Makers<float>::uniform(20000, random);
      for (size_t k = 0; k < l.boxes.size(); k += odd) {
        const auto any = [&] { return static_cast<float>(kOdd[random.below(10)]); };
        l.boxes[k] = {any(), any(), any(), any()};
        if (k % 3 == 0) l.boxes[k] = {1.3e7f, 1.3e7f, 1.3e7f - 20, 1.3e7f - 1};
      }
      const std::vector<int32_t> order = ranked(l.scores);
      const auto n = static_cast<int64_t>(order.size());
      std::vector<int64_t> keep(n);
      for (const Rule rule : {Rule::kIou, Rule::kIos}) {
        const Problem<float> p{l.boxes.data(), order.data(), n, rule, threshold};
        for (const int64_t count : {1, 3}) {
          const int64_t kept = suppress(p, keep.data(), n, threads(count));
          expect(kept > 0 && kept <= n, "odd values");
        }
      }
    }
  }
}

void check_threads() {
  Random random(2);
  for (const auto& [name, make] : kMakers<float>) {
    if (std::string(name) == "one place") continue;  // slow where nothing is optimised
    const Layout<float> l = make(60000, random);
    const std::vector<int32_t> order = ranked(l.scores);
    const auto n = static_cast<int64_t>(order.size());
    const Problem<float> p{l.boxes.data(), order.data(), n, Rule::kIou, 0.4};
    std::vector<int64_t> one(n), several(n);
    one.resize(suppress(p, one.data(), n, Parallel{}));
    for (const int64_t count : {2, 5}) {
      several.resize(n);
      several.resize(suppress(p, several.data(), n, threads(count)));
      expect(one == several, std::string(name) + " on " + std::to_string(count) + " threads");
    }
  }
}

// Comparisons per box (a bucket of eight kept boxes is one) must not grow with the number of boxes.
void check_growth(Rule rule) {
  for (const auto& [name, make] : kMakers<float>) {
    // Where sizes differ much, intersection over the smaller area bounds no distance.
    const std::string text = name;
    const bool similar = text == "uniform" || text == "duplicates" || text == "padded" ||
                         text == "identical" || text == "touching";
    if (rule == Rule::kIos && !similar) continue;
    double before = 0;
    for (const int64_t n : {4000, 16000, 64000}) {
      Random random(3);
      const Layout<float> l = make(n, random);
      const std::vector<int32_t> order = ranked(l.scores);
      std::vector<int64_t> keep(order.size());
      int64_t compared = 0;
      Problem<float> p{l.boxes.data(), order.data(), static_cast<int64_t>(order.size()), rule, 0.5};
      p.compared = &compared;
      suppress(p, keep.data(), p.n, Parallel{});
      const double per_box = static_cast<double>(compared) / static_cast<double>(p.n);
      std::printf("  %-13s %6ld boxes: %6.2f comparisons per box\n", name, static_cast<long>(p.n),
                  per_box);
      expect(per_box < (rule == Rule::kIos ? 60 : 30), std::string(name) + ": many comparisons");
      expect(before == 0 || per_box < 1.5 * before + 1, std::string(name) + ": growing work");
      before = per_box;
    }
  }
}

}  // namespace

int main() {
  const int64_t no_label = 0;
  Problem<float> nothing{nullptr, nullptr, 0, Rule::kIou, 0.5};
  nothing.labels = &no_label + 1;
  expect(suppress(nothing, nullptr, 0, Parallel{}) == 0, "no boxes");
  check_values<float>();
  check_values<double>();
  check_threads();
  check_threads_stitching();
  check_no_boxes_at_all();
  check_growth(Rule::kIou);
  check_growth(Rule::kIos);
  std::printf("greedy: %d failures\n", failures);
  return failures != 0;
}
