// Threads that share the numbers 0..count-1.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace tinyops::eval {

// Calls work(begin, end) until all numbers are done, `grain` of them at a time. Which thread does
// what is left to chance, so a piece of work must write only what belongs to its numbers. The first
// exception is thrown again here.
template <typename Work>
void parallel_for(int64_t count, int64_t grain, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto run = [&] {
    try {
      for (int64_t begin; (begin = next.fetch_add(grain)) < count;)
        work(begin, std::min(begin + grain, count));
    } catch (...) {
      next = count;  // the other threads stop, too
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t k = 1; k < std::min(threads, (count + grain - 1) / grain); ++k)
      others.emplace_back(run);
  } catch (const std::system_error&) {  // the system has no more threads: fewer do it all
  }
  run();
  for (std::thread& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace tinyops::eval
