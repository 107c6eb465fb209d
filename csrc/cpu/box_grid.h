// Finds the boxes near a box: a hashed grid over boxes of any sizes and any number of groups.
//
// A box lies in one cell, that of its upper left corner, in the layer of its group and size: cells
// of layer e are 2^e wide, and boxes of the layer narrower and lower than that. Thus a box that
// meets [x1, x2] has its corner in cells floor(x1 / 2^e) - 1 to floor(x2 / 2^e), in exact
// arithmetic. Sizes of neighbouring layers differ by a factor of 4. Memory is O(boxes).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "../ops/boxes.h"
#include "groups.h"

namespace tinyops {

template <typename T>
class BoxGrid {
 public:
  // Of the boxes whose indices are `members`; groups: [n], of every box. Keeps the pointers.
  BoxGrid(const Box<T>* boxes, const std::vector<int32_t>& members, const int32_t* groups)
      : numbers_(members.size()), cells_(members.size()) {
    std::vector<int32_t> cell_of(members.size());
    for (size_t k = 0; k < members.size(); ++k) {
      const Box<T>& b = boxes[members[k]];
      const int e = exponent_of(larger(b.x2 - b.x1, b.y2 - b.y1));
      const int32_t l = numbers_.add({groups[members[k]], e});
      if (l == static_cast<int32_t>(layers_.size()))
        layers_.push_back({std::ldexp(1.0, -e), std::ldexp(0.25, e), std::ldexp(1.0, e)});
      const double scale = layers_[l].scale;
      cell_of[k] = cells_.add({cell(b.x1, scale), cell(b.y1, scale), l});
    }
    const auto layer_of = [&](int32_t c) { return cells_[c].layer; };
    link(first_cell_, next_cell_, numbers_.size(), cells_.size(), layer_of);
    for (int32_t c = 0; c < cells_.size(); ++c) ++layers_[layer_of(c)].cells;
    const auto group_of = [&](int32_t l) { return static_cast<int32_t>(numbers_[l].first); };
    int32_t count = 0;
    for (int32_t l = 0; l < numbers_.size(); ++l) count = std::max(count, group_of(l) + 1);
    link(first_layer_, next_layer_, count, numbers_.size(), group_of);
    begins_.assign(cells_.size() + 1, 0);
    for (const int32_t c : cell_of) ++begins_[c + 1];
    for (int32_t c = 0; c < cells_.size(); ++c) begins_[c + 1] += begins_[c];
    ends_.assign(begins_.begin(), begins_.end() - 1);
    items_.resize(members.size());
    for (size_t k = 0; k < members.size(); ++k) items_[ends_[cell_of[k]]++] = members[k];
  }

  // Calls visit(index) once for every box of the group that may meet `area`, its border included,
  // and is not surely smaller than `smallest` or larger than `largest` (of width and height the
  // larger). Where visit returns false, the box leaves the grid.
  template <typename F>
  void near(const Box<T>& area, int32_t group, double smallest, double largest, const F& visit) {
    if (group >= static_cast<int32_t>(first_layer_.size())) return;
    for (int32_t l = first_layer_[group]; l >= 0; l = next_layer_[l]) {
      const Layer& layer = layers_[l];
      if (layer.above < smallest || layer.from > largest) continue;
      const int64_t x1 = cell(area.x1, layer.scale) - 1, x2 = cell(area.x2, layer.scale);
      const int64_t y1 = cell(area.y1, layer.scale) - 1, y2 = cell(area.y2, layer.scale);
      if (x2 < x1 || y2 < y1) continue;  // not a box, without value checks
      const double count = (static_cast<double>(x2 - x1) + 1) * (static_cast<double>(y2 - y1) + 1);
      if (count > layer.cells) {  // a huge area and small cells
        for (int32_t c = first_cell_[l]; c >= 0; c = next_cell_[c]) {
          const Cell& at = cells_[c];
          if (at.x >= x1 && at.x <= x2 && at.y >= y1 && at.y <= y2) look(c, visit);
        }
        continue;
      }
      for (int64_t y = y1; y <= y2; ++y)
        for (int64_t x = x1; x <= x2; ++x)
          if (const int32_t c = cells_.find({x, y, l}); c >= 0) look(c, visit);
    }
  }
  template <typename F>
  void near(const Box<T>& area, int32_t group, const F& visit) {
    near(area, group, 0, std::numeric_limits<double>::infinity(), visit);
  }

 private:
  struct Cell {
    int64_t x, y;
    int32_t layer;
    bool operator==(const Cell&) const = default;
    uint64_t hash() const { return mixed(mixed(mixed(0, x), y), layer); }
  };

  // An even e with size < 2^e, and size >= 2^(e-2) unless that is out of range.
  static int exponent_of(T size) {
    constexpr int kLowest = std::numeric_limits<T>::min_exponent & ~1;
    if (!(size > 0)) return kLowest;
    int e;
    std::frexp(static_cast<double>(size), &e);  // size in [2^(e-1), 2^e)
    if (!(size <= std::numeric_limits<T>::max())) e = std::numeric_limits<T>::max_exponent + 2;
    return std::max((e + 1) & ~1, kLowest);
  }
  // floor(x / 2^e). Far outside of any image, coordinates share a cell.
  static int64_t cell(T x, double scale) {
    constexpr double kFar = 0x1p61;
    const double at = std::floor(static_cast<double>(x) * scale);
    return static_cast<int64_t>(at > kFar ? kFar : at > -kFar ? at : -kFar);
  }
  // Lists of the elements of each owner.
  template <typename F>
  static void link(std::vector<int32_t>& first, std::vector<int32_t>& next, int32_t owners,
                   int32_t elements, const F& owner) {
    first.assign(owners, -1);
    next.resize(elements);
    for (int32_t k = elements - 1; k >= 0; --k) next[k] = std::exchange(first[owner(k)], k);
  }
  template <typename F>
  void look(int32_t c, const F& visit) {
    for (int64_t k = begins_[c]; k < ends_[c];) {
      if (visit(items_[k]))
        ++k;
      else
        items_[k] = items_[--ends_[c]];
    }
  }

  struct Layer {
    double scale;        // 1 / width of a cell
    double from, above;  // the larger of width and height of its boxes: from <= size < above
    int64_t cells = 0;
  };

  Numbering<Pair> numbers_;  // of layers, by group and exponent
  std::vector<Layer> layers_;
  Numbering<Cell> cells_;
  std::vector<int32_t> first_layer_, next_layer_;  // of a group
  std::vector<int32_t> first_cell_, next_cell_;    // of a layer
  std::vector<int64_t> begins_, ends_;             // of the boxes of a cell in items_
  std::vector<int32_t> items_;
};

}  // namespace tinyops
