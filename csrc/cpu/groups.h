// Numbers of things that have keys: groups of boxes, layers and cells of a grid.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace tinyops {

// Numbers distinct keys in the order in which they come: an open-addressing hash table.
template <typename Key>
class Numbering {
 public:
  explicit Numbering(int64_t most) {
    size_t slots = 16;
    while (slots < 2 * static_cast<size_t>(most)) slots *= 2;
    slots_.assign(slots, -1);
  }
  int32_t size() const { return static_cast<int32_t>(keys_.size()); }
  const Key& operator[](int32_t number) const { return keys_[number]; }
  // The number of a key; -1 if it was never added.
  int32_t find(const Key& key) const { return slots_[slot_of(key)]; }
  int32_t add(const Key& key) {
    int32_t& slot = slots_[slot_of(key)];
    if (slot < 0) {
      slot = size();
      keys_.push_back(key);
    }
    return slot;
  }

 private:
  size_t slot_of(const Key& key) const {
    size_t slot = key.hash() & (slots_.size() - 1);
    while (slots_[slot] >= 0 && !(keys_[slots_[slot]] == key))
      slot = (slot + 1) & (slots_.size() - 1);
    return slot;
  }
  std::vector<int32_t> slots_;
  std::vector<Key> keys_;
};

inline uint64_t mixed(uint64_t h, int64_t value) {
  h = (h ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
  return h ^ (h >> 32);
}
// Two numbers, such as a label and an image.
struct Pair {
  int64_t first, second;
  bool operator==(const Pair&) const = default;
  uint64_t hash() const { return mixed(mixed(0, first), second); }
};

// The group of each of n boxes, from 0 to count - 1, of which some may be empty.
struct Grouping {
  std::vector<int32_t> of;
  int64_t count;
};

// Boxes of different labels or images never meet. Null: all alike.
inline Grouping groups_of(int64_t n, const int64_t* labels, const int64_t* image_ids) {
  Grouping groups{std::vector<int32_t>(n), 1};
  if (n == 0 || (!labels && !image_ids)) return groups;
  const auto least_and_range = [n](const int64_t* ids) {
    if (!ids) return std::pair<int64_t, uint64_t>{0, 1};
    const auto [least, most] = std::minmax_element(ids, ids + n);
    return std::pair{*least, static_cast<uint64_t>(*most) - static_cast<uint64_t>(*least) + 1};
  };
  const auto [label, label_range] = least_and_range(labels);
  const auto [image, image_range] = least_and_range(image_ids);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const auto few = static_cast<uint64_t>(std::min(4 * n + 1024, kMost));
  // Ids that are dense need no hash table. A range of 2^64 is 0 here.
  if (label_range - 1 < few && image_range - 1 < few && label_range * image_range <= few) {
    for (int64_t k = 0; k < n; ++k) {
      const int64_t i = image_ids ? image_ids[k] - image : 0, l = labels ? labels[k] - label : 0;
      groups.of[k] = static_cast<int32_t>(i * static_cast<int64_t>(label_range) + l);
    }
    groups.count = static_cast<int64_t>(label_range * image_range);
    return groups;
  }
  Numbering<Pair> numbers(n);
  for (int64_t k = 0; k < n; ++k)
    groups.of[k] = numbers.add({labels ? labels[k] : 0, image_ids ? image_ids[k] : 0});
  groups.count = numbers.size();
  return groups;
}

}  // namespace tinyops
