#include "gpu/emulation.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#error "the emulated GPU switches between its threads in x86-64 assembly"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
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

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kLanes = 32;

[[noreturn]] void fail(const std::string& what) {
  const ThreadState& at = current();
  fprintf(stderr, "emulated GPU: %s (block %u of %u, thread %u of %u)\n", what.c_str(), at.block.x, at.grid_size.x,
          at.thread.x, at.block_size.x);
  abort();
}

const char* name_of(Meeting kind) {
  constexpr const char* kNames[] = {"nothing",       "__syncwarp",      "a shuffle",   "a vote",
                                    "__syncthreads", "__syncthreads_*", "cluster_sync"};
  return kNames[static_cast<int>(kind)];
}

// Threads that meet: those of a warp, of a block or of a cluster.
struct Group {
  std::vector<int> members;
  int alive = 0, arrived = 0, votes = 0, decided = 0;
  Meeting kind = Meeting::none;
  int phase = 0;
  uint64_t value[2][kLanes] = {};
};

struct Fiber {
  ThreadState state = {};
  void* stack_pointer = nullptr;
  bool done = false;
  Group* waits_for = nullptr;
  int warp = 0, block = 0;
};

// Stacks are kept for the next grid.
class Stacks {
 public:
  char* of(size_t i) {
    while (stacks_.size() <= i) {
      void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) fail("no memory for a thread's stack");
      stacks_.push_back(static_cast<char*>(p));
    }
    return stacks_[i];
  }

 private:
  std::vector<char*> stacks_;
};

enum class Order { forward, backward, shuffled };

class Cluster;
Cluster* running = nullptr;
ThreadState outside = {};
Stacks stacks;

// The threads of one block, or of the blocks of one cluster.
class Cluster {
 public:
  Cluster(int64_t grid, int threads, int64_t shared_bytes, int blocks, const std::function<void()>& kernel)
      : kernel_(kernel),
        shared_bytes_(shared_bytes),
        warps_(static_cast<size_t>(blocks * threads / kLanes)),
        blocks_(static_cast<size_t>(blocks)),
        fibers_(static_cast<size_t>(blocks * threads)) {
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.block = static_cast<int>(i) / threads;
      fiber.warp = static_cast<int>(i) / kLanes;
      fiber.state.thread = {static_cast<unsigned>(i) % static_cast<unsigned>(threads), 0, 0};
      fiber.state.block_size = {static_cast<unsigned>(threads), 1, 1};
      fiber.state.grid_size = {static_cast<unsigned>(grid), 1, 1};
      order_.push_back(static_cast<int>(i));
    }
    const char* order = getenv("SUMPROD_EMULATED_ORDER");
    const std::string text = order == nullptr || *order == 0 ? "forward" : order;
    if (text == "backward") std::reverse(order_.begin(), order_.end());
    if (text != "backward" && text != "forward") {
      shuffles_ = true;
      random_.seed(static_cast<unsigned>(std::stoul(text)));
    }
  }

  void run(int64_t first_block) {
    for (Group& group : warps_) group = {};
    for (Group& group : blocks_) group = {};
    all_ = {};
    shared_.clear();
    for (size_t b = 0; b < blocks_.size(); ++b) {
      shared_.emplace_back(
          static_cast<unsigned char*>(aligned_alloc(16, static_cast<size_t>((shared_bytes_ + 15) / 16 * 16 + 16))));
      memset(shared_.back().get(), 0xff, static_cast<size_t>(shared_bytes_));
    }
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.state.block = {static_cast<unsigned>(first_block + fiber.block), 0, 0};
      fiber.done = false;
      fiber.waits_for = nullptr;
      prepare_stack(fiber, stacks.of(i));
      for (Group* group :
           {&warps_[static_cast<size_t>(fiber.warp)], &blocks_[static_cast<size_t>(fiber.block)], &all_}) {
        group->members.push_back(static_cast<int>(i));
        ++group->alive;
      }
    }
    size_t left = fibers_.size();
    while (left > 0) {
      if (shuffles_) std::shuffle(order_.begin(), order_.end(), random_);
      bool progress = false;
      for (int i : order_) {
        Fiber& fiber = fibers_[static_cast<size_t>(i)];
        if (fiber.done || fiber.waits_for != nullptr) continue;
        progress = true;
        resume(fiber, static_cast<size_t>(i));
        left -= fiber.done;
      }
      if (!progress) stuck();
    }
  }

  Fiber* now() { return now_; }  // null while the scheduler runs
  Group& warp() { return warps_[static_cast<size_t>(now_->warp)]; }
  Group& block() { return blocks_[static_cast<size_t>(now_->block)]; }
  Group& all() { return all_; }
  int rank() const { return now_->block; }
  unsigned char* shared(int rank) { return shared_[static_cast<size_t>(rank)].get(); }
  size_t size() const { return blocks_.size(); }

  // Returns when all members of the group have come.
  void meet(Group& group, Meeting kind, bool vote) {
    if (group.kind != Meeting::none && group.kind != kind) {
      fail(std::string("some threads are at ") + name_of(group.kind) + ", others at " + name_of(kind));
    }
    if (group.alive != static_cast<int>(group.members.size())) {
      fail(std::string(name_of(kind)) + " after threads have left");
    }
    group.kind = kind;
    group.votes += vote;
    if (++group.arrived < group.alive) {
      now_->waits_for = &group;
      leave(false);
      return;
    }
    group.decided = group.votes;
    group.arrived = group.votes = 0;
    group.kind = Meeting::none;
    group.phase ^= 1;
    for (int i : group.members) {
      if (fibers_[static_cast<size_t>(i)].waits_for == &group) fibers_[static_cast<size_t>(i)].waits_for = nullptr;
    }
  }

 private:
  [[noreturn]] static void enter() {
    running->arrived_on_stack();
    running->kernel_();
    running->finish();
    abort();
  }

  void prepare_stack(Fiber& fiber, char* stack) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes - 64);
    *--top = nullptr;  // where the first function would return to; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&Cluster::enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
  }

  void resume(Fiber& fiber, size_t index) {
    now_ = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stacks.of(index), kStackBytes);
    sumprod_switch_stack(&scheduler_, fiber.stack_pointer);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)index;
    sumprod_switch_stack(&scheduler_, fiber.stack_pointer);
#endif
    now_ = nullptr;
  }

  void leave([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, scheduler_stack_, scheduler_stack_bytes_);
    sumprod_switch_stack(&now_->stack_pointer, scheduler_);
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack_, &scheduler_stack_bytes_);
#else
    sumprod_switch_stack(&now_->stack_pointer, scheduler_);
#endif
  }

  void arrived_on_stack() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  void finish() {
    for (Group* group : {&warp(), &block(), &all_}) {
      --group->alive;
      if (group->arrived > 0) fail(std::string("a thread leaves while others wait at ") + name_of(group->kind));
    }
    now_->done = true;
    leave(true);
  }

  [[noreturn]] void stuck() {
    for (Fiber& fiber : fibers_) {
      if (fiber.waits_for == nullptr) continue;
      now_ = &fiber;
      fail(std::string("not all threads reach ") + name_of(fiber.waits_for->kind));
    }
    fail("no thread can go on");
  }

  struct Release {
    void operator()(unsigned char* p) const { free(p); }
  };

  const std::function<void()>& kernel_;
  const int64_t shared_bytes_;
  std::vector<Group> warps_, blocks_;
  Group all_;
  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<unsigned char, Release>> shared_;
  std::vector<int> order_;
  bool shuffles_ = false;
  std::mt19937 random_;
  Fiber* now_ = nullptr;
  void* scheduler_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
#endif
};

}  // namespace

ThreadState& current() { return running == nullptr || running->now() == nullptr ? outside : running->now()->state; }

void require_full_warp(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp function is called for part of a warp");
}

const uint64_t* meet_warp(Meeting kind, uint64_t value) {
  Group& warp = running->warp();
  const int phase = warp.phase;
  warp.value[phase][current().thread.x % kLanes] = value;
  running->meet(warp, kind, false);
  return warp.value[phase];
}

int meet_block(Meeting kind, bool vote) {
  Group& block = running->block();
  running->meet(block, kind, vote);
  return block.decided;
}

unsigned char* shared_memory() { return running->shared(running->rank()); }
int cluster_rank() { return running->rank(); }
void cluster_sync() { running->meet(running->all(), Meeting::sync_cluster, false); }
void* cluster_shared(void* own, int rank) {
  if (rank < 0 || static_cast<size_t>(rank) >= running->size()) fail("no block of the cluster has this rank");
  return running->shared(rank) + (static_cast<unsigned char*>(own) - shared_memory());
}

// A small GPU, so that small problems reach all paths; the environment may ask for another.
DeviceProperties properties() {
  const auto number = [](const char* name, int otherwise) {
    const char* text = getenv(name);
    return text == nullptr || *text == 0 ? otherwise : atoi(text);
  };
  return {number("SUMPROD_EMULATED_MULTIPROCESSORS", 4), 227 * 1024, number("SUMPROD_EMULATED_CAPABILITY", 90)};
}

void run_grid(int64_t blocks, int threads, int64_t shared_bytes, int cluster, const std::function<void()>& kernel) {
  static std::recursive_mutex mutex;
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (blocks == 0) return;
  if (running != nullptr) fail("a kernel is launched from a kernel");
  if (threads <= 0 || threads > 1024 || threads % kLanes != 0) fail("a block has 32, 64, ... or 1024 threads");
  if (shared_bytes > properties().shared_bytes) fail("more shared memory than a block may have");
  if (cluster < 1 || cluster > 8 || blocks % cluster != 0) fail("a cluster has 1 to 8 blocks and divides the grid");
  Cluster group(blocks, threads, shared_bytes, cluster, kernel);
  running = &group;
  for (int64_t first = 0; first < blocks; first += cluster) group.run(first);
  running = nullptr;
}

}  // namespace sumprod::gpu::emulation
