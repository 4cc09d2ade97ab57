// Switching between the stacks of emulated threads, and what the sanitizers have to be told of it. Included by
// emulation.cpp only.
//
// To the thread sanitizer every CUDA thread is a thread of its own, ordered with others by barriers alone: neither
// by the order in which the fibers happen to run, nor by shuffles and votes, which order no memory on a GPU. So it
// reports what a missing barrier leaves unordered even when the results happen to be right.
#pragma once

#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

#if !defined(__x86_64__)
#error "the emulated GPU switches between its threads in x86-64 assembly"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if defined(SUMPROD_LOOKS_FOR_RACES)  // __SANITIZE_THREAD__ is not defined here: the emulation itself is not looked at
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// Saves the callee-saved registers and the stack pointer in *save, and goes on where `load` was saved.
extern "C" void sumprod_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden sumprod_switch_stack
.globl sumprod_switch_stack
.type sumprod_switch_stack, @function
sumprod_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sumprod_switch_stack, .-sumprod_switch_stack
)");

namespace sumprod::gpu::emulation {

// ---- races: what happened before what

#if defined(SUMPROD_LOOKS_FOR_RACES)
// All that this thread did happened before what follows any acquire() of the same address.
inline void release(const void* address) { __tsan_release(const_cast<void*>(address)); }
inline void acquire(const void* address) { __tsan_acquire(const_cast<void*>(address)); }
// While one exists, what this thread writes, allocates or frees is nobody's race.
class Unseen {
 public:
  Unseen() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};
#else
inline void release(const void*) {}
inline void acquire(const void*) {}
class Unseen {
 public:
  Unseen() {}
};
#endif

// ---- stacks

// Something that runs and can be left: an emulated thread, or the one that schedules them.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // the address sanitizer's
  void* thread = nullptr;      // the thread sanitizer's
};

// Leaves `from`, for good or until somebody switches back to it.
inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(SUMPROD_LOOKS_FOR_RACES)
  __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
#endif
  sumprod_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing done on a new stack, to which `from` has switched.
inline void arrive([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.stack_bytes);
#endif
}

// The context that calls this.
inline Context own_context() {
  Context own;
#if defined(SUMPROD_LOOKS_FOR_RACES)
  own.thread = __tsan_get_current_fiber();
#endif
  return own;
}

// Contexts with stacks, kept for the next grid.
class Contexts {
 public:
  // Context i, about to call `function`, which never returns.
  Context prepared(size_t i, void (*function)()) {
    while (kept_.size() <= i) kept_.push_back(create());
    Context context = kept_[i];
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(context.stack, context.stack_bytes);  // from calls that have never returned
#endif
    auto* top = reinterpret_cast<void**>(static_cast<char*>(const_cast<void*>(context.stack)) + kStackBytes - 64);
    *--top = nullptr;  // where the function would return to; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(function);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    context.stack_pointer = top;
    return context;
  }

 private:
  static constexpr size_t kStackBytes = 128 * 1024;

  static Context create() {
    Context context;
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    context.stack = p;
    context.stack_bytes = kStackBytes;
#if defined(SUMPROD_LOOKS_FOR_RACES)
    context.thread = __tsan_create_fiber(0);
#endif
    return context;
  }

  std::vector<Context> kept_;
};

}  // namespace sumprod::gpu::emulation
