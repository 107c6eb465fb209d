// Scratch of many arrays in one allocation. The same function takes the arrays twice: first from an
// empty arena, which counts the bytes, and then from one with memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tinyops {

class Arena {
 public:
  explicit Arena(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;  // of every torch allocation, and what CUB asks for
    const size_t start = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ ? reinterpret_cast<T*>(memory_ + start) : nullptr;
  }
  int64_t used() const { return static_cast<int64_t>(used_); }

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace tinyops
