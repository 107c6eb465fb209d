// Fibers for cudasim: stacks of our own, and the switch between them.
//
// On x86-64 a switch takes a few nanoseconds; elsewhere ucontext does it with two system calls.
// AddressSanitizer is told about every switch, so kernels can be checked like any other code.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if !defined(__x86_64__) && !defined(CUDASIM_UCONTEXT)
#define CUDASIM_UCONTEXT  // the slow but portable switch; define it by hand to test it
#endif
#ifdef CUDASIM_UCONTEXT
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDASIM_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define CUDASIM_ASAN
#endif
#ifdef CUDASIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// For functions that are left for good in the middle: ASan must not poison a frame of theirs.
#define CUDASIM_UNPOISONED __attribute__((noinline, no_sanitize_address))

namespace cudasim {

// A place execution can return to: a fiber, or the host thread that launched the kernel.
struct Context {
#ifdef CUDASIM_UCONTEXT
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;  // everything else lies on the stack
#endif
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;  // ASan's, when it looks for use after return
};

inline Context* switched_from = nullptr;  // whose stack bounds ASan reports to the one arriving

#ifndef CUDASIM_UCONTEXT
// swapcontext() saves the signal mask with a system call each time; this takes a few cycles.
// noipa: GCC must assume that every caller-saved register is lost, as in any unknown call.
// The floating-point control word is not switched, since kernels do not change it.
__attribute__((noinline, noipa)) inline void swap_stacks(void** save, void* load) {
  asm volatile(
      "leaq -128(%%rsp), %%rsp\n\t"  // step over the red zone
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "pushq %%rbp\n\t"  // pushed, because GCC refuses rbp in the clobber list
      "movq %%rsp, (%0)\n\t"
      "movq %1, %%rsp\n\t"
      "popq %%rbp\n\t"
      "popq %%rax\n\t"
      "jmpq *%%rax\n"
      "1:\n\t"
      "leaq 128(%%rsp), %%rsp"
      : "+D"(save), "+S"(load)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory",
        "cc");
}
#endif

// First thing to do after arriving; `fake_stack` is what the context saved when it left.
CUDASIM_UNPOISONED inline void arrive([[maybe_unused]] void* fake_stack) {
#ifdef CUDASIM_ASAN
  Context& from = *switched_from;
  __sanitizer_finish_switch_fiber(fake_stack, &from.stack_bottom, &from.stack_size);
#endif
}

// Leaves `from` for `to`; returns when somebody switches back. `for_good`: nobody ever will.
CUDASIM_UNPOISONED inline void switch_context(Context& from, Context& to, bool for_good = false) {
#ifdef CUDASIM_ASAN
  void** const fake_stack = for_good ? nullptr : &from.fake_stack;  // null: ASan frees it
  __sanitizer_start_switch_fiber(fake_stack, to.stack_bottom, to.stack_size);
#endif
  static_cast<void>(for_good);
  switched_from = &from;
#ifdef CUDASIM_UCONTEXT
  swapcontext(&from.registers, &to.registers);
#else
  swap_stacks(&from.stack_pointer, to.stack_pointer);
#endif
  arrive(from.fake_stack);
}

// A stack for one thread at a time. Kept for ever and reused; its pages cost nothing until touched.
class Fiber : public Context {
 public:
  // `number`: stacks lie a power of two apart, so without an offset of their own the hot ends of
  // all of them would compete for the same few cache lines (a barrier then takes twice as long).
  explicit Fiber(size_t number) : top_(kMapped - number % 253 * 320) {
    memory_ = static_cast<char*>(mmap(nullptr, kMapped, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    const auto guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mprotect(memory_, guard, PROT_NONE);  // an overflow must fault, not corrupt the neighbour
    stack_bottom = memory_ + guard;
    stack_size = top_ - guard;
  }
  ~Fiber() { munmap(memory_, kMapped); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry(), which must never return.
  void prepare(void (*entry)()) {
#ifdef CUDASIM_UCONTEXT
    getcontext(&registers);
    registers.uc_stack.ss_sp = const_cast<void*>(stack_bottom);
    registers.uc_stack.ss_size = stack_size;
    registers.uc_link = nullptr;
    makecontext(&registers, entry, 0);
#else
    void** const top = reinterpret_cast<void**>(memory_ + top_);
    top[-1] = nullptr;  // return address of entry(): ends every backtrace
    top[-2] = reinterpret_cast<void*>(entry);
    top[-3] = nullptr;  // frame pointer
    stack_pointer = top - 3;
#endif
  }

 private:
  // At least 300 KiB are usable: the frames that ASan makes are several times the usual ones.
  static constexpr size_t kMapped = 384 << 10;
  size_t top_;
  char* memory_;
};

}  // namespace cudasim
