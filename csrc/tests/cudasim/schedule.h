// The order in which cudasim runs the threads of a block and the blocks of a grid.
//
// Seed 0 is index order. Any other seed draws the next thread, in half of the blocks from all that
// are runnable, in the other half so that one warp runs ahead as far as it can.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace cudasim {

// splitmix64 (Steele, Lea and Flood, 2014): any seed will do, and the same on every platform.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  unsigned below(unsigned n) { return static_cast<unsigned>(((next() >> 32) * n) >> 32); }

 private:
  uint64_t state_;
};

inline uint64_t seed_from_environment() {
  const char* const text = std::getenv("TINYOPS_SIM_SEED");
  if (!text) return 0;
  char* end = nullptr;
  const uint64_t seed = std::strtoull(text, &end, 10);
  if (end == text || *end)
    throw std::invalid_argument("TINYOPS_SIM_SEED must be a number, got " + std::string(text));
  return seed;
}

// The runnable threads of a block, by number.
class Schedule {
 public:
  static constexpr unsigned kMaxThreads = 1024;

  void start_grid(uint64_t seed) {
    shuffled_ = seed != 0;
    random_ = Random(seed);
  }
  void start_block() {
    head_ = count_ = 0;
    depth_first_ = shuffled_ && random_.below(2);
  }
  bool empty() const { return count_ == 0; }

  unsigned pop() {
    --count_;
    if (depth_first_) return at(head_ + count_);
    if (shuffled_) std::swap(at(head_), at(head_ + random_.below(count_ + 1)));
    return at(head_++);
  }

  // Adds the lanes of one warp.
  void push(unsigned warp, unsigned lanes) {
    const unsigned first = head_ + count_;
    for (; lanes; lanes &= lanes - 1) {
      const unsigned last = head_ + count_++;
      at(last) = static_cast<uint16_t>(warp * 32 + static_cast<unsigned>(std::countr_zero(lanes)));
      if (shuffled_) std::swap(at(last), at(first + random_.below(last - first + 1)));
    }
  }

  // Adds a thread that gives way to all that are runnable.
  void push_last(unsigned thread) {
    if (depth_first_) --head_;
    at(depth_first_ ? head_ : head_ + count_) = static_cast<uint16_t>(thread);
    ++count_;
  }

  // Adds lanes_of(warp) for each warp, one warp after the other.
  template <typename LanesOf>
  void push_warps(unsigned warps, LanesOf lanes_of) {
    std::array<unsigned, kMaxThreads / 32> order{};
    std::iota(order.begin(), order.end(), 0u);
    for (unsigned i = warps; shuffled_ && i > 1; --i)
      std::swap(order[i - 1], order[random_.below(i)]);
    for (unsigned i = 0; i < warps; ++i) push(order[i], lanes_of(order[i]));
  }

  // {first block, step to the next, modulo their number}. A step without a common factor visits
  // them all, in an order that takes no memory however large the grid is.
  std::pair<uint64_t, uint64_t> block_order(uint64_t blocks) {
    if (!shuffled_ || blocks == 1) return {0, 1};
    uint64_t step;
    do {
      step = random_.next() % blocks;
    } while (std::gcd(step, blocks) != 1);
    return {random_.next() % blocks, step};
  }

 private:
  uint16_t& at(unsigned i) { return ring_[i % kMaxThreads]; }

  bool shuffled_ = false;
  bool depth_first_ = false;
  Random random_;
  std::array<uint16_t, kMaxThreads> ring_{};
  unsigned head_ = 0, count_ = 0;
};

}  // namespace cudasim
