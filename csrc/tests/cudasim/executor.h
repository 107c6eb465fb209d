// The scheduler of cudasim: runs the threads of a CUDA block as fibers of one host thread.
//
// Blocks run one after another. Inside a block a fiber runs a thread until that thread has to wait
// at a barrier or a warp operation; only then is another fiber needed. A kernel without barriers
// therefore runs all its threads on a single fiber, and costs one function call per thread.
// What hangs a GPU is an exception here.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"
#include "schedule.h"

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

namespace cudasim {

// What a thread waits at. The warp operations differ, because lanes must meet at the same one.
enum class Wait : uint8_t { nothing, block, syncwarp, shuffle, ballot, any, all };

// When a block has ended, failed or not, no thread has a fiber or waits.
struct Thread {
  uint3 index{};
  unsigned number = 0;     // in the block; number % 32 is the lane
  Fiber* fiber = nullptr;  // null before the first instruction and after the last
  Wait wait = Wait::nothing;
  unsigned mask = 0;    // of the warp operation
  unsigned source = 0;  // lane to read from, in a shuffle
  uint64_t given = 0;   // value of a shuffle, predicate of a vote
  uint64_t received = 0;
};

struct Warp {
  unsigned live = 0;     // lanes that exist and have not exited
  unsigned waiting = 0;  // lanes at a warp operation
};

class Executor {
 public:
  using Invoke = void (*)(const void* arguments);

  // Runs a whole grid; what a kernel or a check throws is thrown here. Sizes are valid already.
  void launch(dim3 grid, dim3 block, size_t shared_bytes, Invoke invoke, const void* arguments);
  void set_seed(uint64_t seed);

  // The calling thread waits for all live threads of the block; {how many came, how many `true`}.
  std::pair<unsigned, unsigned> sync_block(bool predicate);
  // The calling thread waits for the live lanes of `mask`. Returns, by kind: the value given by
  // lane `source` (all bits set if it takes no part), or the ballot of the predicates given.
  uint64_t sync_warp(Wait kind, unsigned mask, uint64_t given = 0, unsigned source = 0);

  // Lets the other threads of the block run: inside a loop that waits for what they write.
  void give_way();

  unsigned lane() { return self().number % 32; }
  void* shared() { return self(), shared_.get(); }

 private:
  struct Cancelled {};  // unwinds the other threads of a block that failed
  struct FreeShared {
    void operator()(std::byte* p) const { ::operator delete(p, kSharedAlignment); }
  };
  static constexpr std::align_val_t kSharedAlignment{128};

  static void fiber_main();
  void make_threads();
  void run_block();
  void run_thread();
  void finish_thread(Thread& t);
  void provide_fiber();
  void resume(Context& from, Thread& t);
  Thread& prepare_to_wait();
  void suspend();
  Thread* pick_next();
  void make_current(Thread& t);
  void release_block();
  void release_warp(unsigned warp, unsigned mask);
  void make_all_runnable();
  void fail_stuck();
  void cancel();
  std::string describe(const std::string& what) const;
  Thread& self();

  std::mutex mutex_;  // torch's autograd thread launches too
  std::optional<uint64_t> seed_;
  Schedule runnable_;

  Context host_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;

  Invoke invoke_ = nullptr;
  const void* arguments_ = nullptr;
  std::unique_ptr<std::byte[], FreeShared> shared_;

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;
  unsigned live_ = 0;
  unsigned at_barrier_ = 0, predicates_ = 0;      // of the barrier being filled
  std::pair<unsigned, unsigned> last_barrier_{};  // of the one released last
  std::exception_ptr error_;
  bool cancelling_ = false;
};

inline Executor executor;  // the only one of the program or shared library
inline thread_local bool inside_launch = false;

// ---- Threads and fibers --------------------------------------------------------------------

inline Thread& Executor::self() {
  if (!current_) throw std::logic_error("cudasim: a device function was called outside a kernel");
  return *current_;
}

// A fiber runs fresh threads as long as there are any, then hands over to one that was waiting.
CUDASIM_UNPOISONED inline void Executor::fiber_main() {
  arrive(nullptr);
  Executor& e = executor;
  Fiber& fiber = *e.current_->fiber;
  for (;;) {
    e.run_thread();
    Thread* const next = e.pick_next();
    if (next && !next->fiber) {
      next->fiber = &fiber;
      e.make_current(*next);
      continue;
    }
    e.idle_.push_back(&fiber);
    if (next) e.make_current(*next);
    switch_context(fiber, next ? static_cast<Context&>(*next->fiber) : e.host_, true);
  }
}

inline void Executor::run_thread() {
  Thread& t = *current_;
  try {
    if (!cancelling_) invoke_(arguments_);
  } catch (const Cancelled&) {
  } catch (...) {
    if (!error_) error_ = std::current_exception();
    cancel();
  }
  finish_thread(t);
}

inline void Executor::finish_thread(Thread& t) {
  t.fiber = nullptr;
  const unsigned w = t.number / 32;
  Warp& warp = warps_[w];
  warp.live &= ~(1u << t.number % 32);
  --live_;
  if (cancelling_) return;
  if (live_ && at_barrier_ == live_) release_block();  // they need not wait for this one any more
  for (unsigned left = warp.waiting; left; left &= left - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(left));
    if (warp.waiting >> lane & 1) release_warp(w, threads_[w * 32 + lane].mask);
  }
}

inline void Executor::make_current(Thread& t) {
  current_ = &t;
  threadIdx = t.index;
}

// Called before anything changes, since memory may run out.
inline void Executor::provide_fiber() {
  if (!idle_.empty()) return;
  idle_.reserve(fibers_.size() + 1);  // room for all of them, so fiber_main() cannot fail
  idle_.push_back(fibers_.emplace_back(std::make_unique<Fiber>(fibers_.size())).get());
}

inline void Executor::resume(Context& from, Thread& t) {
  if (!t.fiber) {
    t.fiber = idle_.back();
    idle_.pop_back();
    t.fiber->prepare(&fiber_main);
  }
  make_current(t);
  switch_context(from, *t.fiber);
}

// Runs other threads until the current one is runnable again and its turn has come.
inline void Executor::suspend() {
  Thread& me = *current_;
  Thread& next = *pick_next();  // there is one, since this thread is alive
  if (&next != &me) resume(*me.fiber, next);
  if (cancelling_) throw Cancelled{};
}

// Null when all threads have exited. If the rest can only wait for each other, the block fails.
inline Thread* Executor::pick_next() {
  if (!live_) return nullptr;
  if (runnable_.empty()) fail_stuck();
  return &threads_[runnable_.pop()];
}

// ---- Barriers ------------------------------------------------------------------------------

inline Thread& Executor::prepare_to_wait() {
  Thread& me = self();
  if (cancelling_) throw Cancelled{};
  provide_fiber();
  return me;
}

inline std::pair<unsigned, unsigned> Executor::sync_block(bool predicate) {
  Thread& me = prepare_to_wait();
  me.wait = Wait::block;
  ++at_barrier_;
  predicates_ += predicate;
  if (at_barrier_ == live_) release_block();
  suspend();
  return last_barrier_;  // still ours: the next barrier cannot be released without this thread
}

inline void Executor::give_way() {
  Thread& me = prepare_to_wait();
  runnable_.push_last(me.number);
  suspend();
}

inline void Executor::make_all_runnable() {
  const auto warps = static_cast<unsigned>(warps_.size());
  runnable_.push_warps(warps, [&](unsigned w) { return warps_[w].live; });
}

inline void Executor::release_block() {
  last_barrier_ = {at_barrier_, predicates_};
  at_barrier_ = predicates_ = 0;
  for (Thread& t : threads_) t.wait = Wait::nothing;
  make_all_runnable();
}

inline uint64_t Executor::sync_warp(Wait kind, unsigned mask, uint64_t given, unsigned source) {
  Thread& me = prepare_to_wait();
  const unsigned bit = 1u << me.number % 32;
  if (!(mask & bit))
    throw std::runtime_error(describe("has a thread that is missing from its own warp mask"));
  me.wait = kind;
  me.mask = mask;
  me.given = given;
  me.source = source;
  warps_[me.number / 32].waiting |= bit;
  release_warp(me.number / 32, mask);
  suspend();
  return me.received;
}

// Completes the operation if all live lanes of `mask` have come to it with that same mask.
// Results are handed out here, so that no lane can overwrite what another has not read yet.
inline void Executor::release_warp(unsigned w, unsigned mask) {
  Warp& warp = warps_[w];
  const unsigned members = mask & warp.live;
  if (members & ~warp.waiting) return;
  Thread* const lanes = &threads_[w * 32];
  const auto first = static_cast<unsigned>(std::countr_zero(members));
  const Wait kind = lanes[first].wait;
  unsigned ballot = 0;
  for (unsigned left = members; left; left &= left - 1) {
    const auto k = static_cast<unsigned>(std::countr_zero(left));
    if (lanes[k].mask != mask || lanes[k].wait != kind) return;  // reported when nothing can move
    ballot |= static_cast<unsigned>(lanes[k].given != 0) << k;
  }
  for (unsigned left = members; left; left &= left - 1) {
    Thread& t = lanes[std::countr_zero(left)];
    const bool present = members >> t.source & 1;
    t.received = kind != Wait::shuffle ? ballot : present ? lanes[t.source].given : ~uint64_t{0};
    t.wait = Wait::nothing;
  }
  warp.waiting &= ~members;
  runnable_.push(w, members);
}

// ---- Failure -------------------------------------------------------------------------------

[[gnu::noinline, gnu::cold]] inline void Executor::fail_stuck() {
  error_ = std::make_exception_ptr(std::runtime_error(describe("cannot proceed")));
  cancel();
}

// Makes every waiting thread runnable; it then throws Cancelled where it waited.
inline void Executor::cancel() {
  cancelling_ = true;
  at_barrier_ = predicates_ = 0;
  for (Warp& warp : warps_) warp.waiting = 0;
  for (Thread& t : threads_) {
    if (std::exchange(t.wait, Wait::nothing) == Wait::nothing) continue;
    runnable_.push(t.number / 32, 1u << t.number % 32);
  }
}

inline std::string Executor::describe(const std::string& what) const {
  static constexpr const char* kNames[] = {
      "",           "__syncthreads", "__syncwarp", "__shfl_sync", "__ballot_sync",
      "__any_sync", "__all_sync"};
  const auto index = [](uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) +
           ")";
  };
  std::string text = "cudasim: block " + index(blockIdx) + " " + what + "; " +
                     std::to_string(live_) + " of " + std::to_string(threads_.size()) +
                     " threads have not exited";
  for (int kind = 1; kind <= static_cast<int>(Wait::all); ++kind) {
    const auto waits = [&](const Thread& t) { return static_cast<int>(t.wait) == kind; };
    const auto first = std::find_if(threads_.begin(), threads_.end(), waits);
    if (first == threads_.end()) continue;
    text += "; " + std::to_string(std::count_if(first, threads_.end(), waits)) +
            " threads wait at " + kNames[kind] + ", the first is " + index(first->index);
    char mask[32];
    std::snprintf(mask, sizeof mask, " with mask 0x%08x", first->mask);
    if (first->wait != Wait::block) text += mask;
  }
  return text;
}

// ---- Grids ---------------------------------------------------------------------------------

inline void Executor::set_seed(uint64_t seed) {
  const std::lock_guard lock(mutex_);
  seed_ = seed;
}

inline void Executor::launch(dim3 grid, dim3 block, size_t shared_bytes, Invoke invoke,
                             const void* arguments) {
  if (inside_launch) throw std::logic_error("cudasim: a kernel cannot launch a kernel");
  const std::lock_guard lock(mutex_);
  if (!seed_) seed_ = seed_from_environment();
  runnable_.start_grid(*seed_);  // anew for each launch: a failing test fails alone, too
  invoke_ = invoke;
  arguments_ = arguments;
  gridDim = grid;
  blockDim = block;
  make_threads();
  error_ = nullptr;
  cancelling_ = false;
  inside_launch = true;
  const struct Leave {
    Executor& e;
    ~Leave() { inside_launch = false, e.current_ = nullptr, e.shared_ = nullptr; }
  } leave{*this};

  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  auto [b, step] = runnable_.block_order(blocks);
  for (uint64_t i = 0; i < blocks && !error_; ++i) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    // A block of memory of its own: AddressSanitizer sees an overrun, and NaN what was not written.
    shared_ = nullptr;
    if (shared_bytes) {
      shared_.reset(static_cast<std::byte*>(::operator new(shared_bytes, kSharedAlignment)));
      std::fill_n(shared_.get(), shared_bytes, std::byte{0xff});
    }
    run_block();
    b = b >= blocks - step ? b - (blocks - step) : b + step;
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

inline void Executor::make_threads() {
  const dim3 n = blockDim;
  threads_.resize(n.x * n.y * n.z);
  warps_.resize((threads_.size() + 31) / 32);
  Thread* t = threads_.data();
  for (unsigned z = 0; z < n.z; ++z)
    for (unsigned y = 0; y < n.y; ++y)
      for (unsigned x = 0; x < n.x; ++x, ++t) {
        t->index = {x, y, z};
        t->number = static_cast<unsigned>(t - threads_.data());
      }
}

inline void Executor::run_block() {
  live_ = static_cast<unsigned>(threads_.size());
  for (unsigned w = 0; w < warps_.size(); ++w)
    warps_[w].live = live_ - w * 32 >= 32 ? ~0u : (1u << live_ % 32) - 1;
  runnable_.start_block();
  make_all_runnable();
  provide_fiber();
  resume(host_, *pick_next());
}

inline void set_seed(uint64_t seed) {
  executor.set_seed(seed);
}

}  // namespace cudasim
