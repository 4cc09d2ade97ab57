#include "gpu/emulation.h"

#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "gpu/emulation_contexts.h"

namespace sumprod::gpu::emulation {

namespace {

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

std::string describe(const Place& place) {
  return std::string(place.file_name()) + ":" + std::to_string(place.line()) + " (" + place.function_name() + ")";
}

// Threads that meet: those of a warp, of a block or of a cluster.
struct Group {
  std::vector<int> members;
  int alive = 0, arrived = 0, votes = 0, decided = 0;
  Meeting kind = Meeting::none;
  int phase = 0;  // changes when all have met: a thread may be at the next meeting before all have left this one
  char barrier[2] = {};
  uint64_t value[2][kLanes] = {};
};

struct Fiber {
  ThreadState state = {};
  Context context;
  bool done = false;
  Group* waits_for = nullptr;
  Place met_at;
  int warp = 0, block = 0;
};

class Cluster;
Cluster* running = nullptr;
ThreadState outside = {};
Contexts contexts;

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

  // The whole grid, a cluster at a time.
  void run(int64_t grid) {
    release(&begin_);
    const auto at_once = static_cast<int64_t>(blocks_.size());
    for (int64_t first = 0; first < grid; first += at_once) {
      prepare(first);
      run_to_the_end();
    }
    acquire(&end_);
  }

  Fiber* now() { return now_; }  // null while the scheduler runs
  Group& warp() { return warps_[static_cast<size_t>(now_->warp)]; }
  Group& block() { return blocks_[static_cast<size_t>(now_->block)]; }
  Group& all() { return all_; }
  int rank() const { return now_->block; }
  unsigned char* shared(int rank) { return shared_[static_cast<size_t>(rank)].get(); }
  size_t size() const { return blocks_.size(); }

  // Returns when all members of the group have come.
  void meet(Group& group, Meeting kind, bool vote, const Place& place) {
    if (group.kind != Meeting::none && group.kind != kind) {
      fail(std::string("some threads are at ") + name_of(group.kind) + ", others at " + name_of(kind));
    }
    if (group.alive != static_cast<int>(group.members.size())) {
      fail(std::string(name_of(kind)) + " after threads have left");
    }
    group.kind = kind;
    group.votes += vote;
    now_->met_at = place;
    if (++group.arrived < group.alive) {
      now_->waits_for = &group;
      leave(false);
      return;
    }
    check_places(group);
    group.decided = group.votes;
    group.arrived = group.votes = 0;
    group.kind = Meeting::none;
    group.phase ^= 1;
    for (int i : group.members) {
      if (fibers_[static_cast<size_t>(i)].waits_for == &group) fibers_[static_cast<size_t>(i)].waits_for = nullptr;
    }
  }

 private:
  void prepare(int64_t first_block) {
    for (Group& group : warps_) group = {};
    for (Group& group : blocks_) group = {};
    all_ = {};
    const Unseen shared_memory_changes_hands;
    shared_.clear();
    for (size_t b = 0; b < blocks_.size(); ++b) {
      void* memory = nullptr;
      if (posix_memalign(&memory, 16, static_cast<size_t>(std::max<int64_t>(shared_bytes_, 1))) != 0)
        fail("no shared memory");
      shared_.emplace_back(static_cast<unsigned char*>(memory));
      memset(shared_.back().get(), 0xff, static_cast<size_t>(shared_bytes_));
    }
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.state.block = {static_cast<unsigned>(first_block + fiber.block), 0, 0};
      fiber.done = false;
      fiber.waits_for = nullptr;
      // Neighbouring blocks have contexts of their own, so that the thread sanitizer does not take the one that
      // happens to run first for one that is waited for.
      const size_t odd = static_cast<size_t>(first_block) / blocks_.size() % 2;
      fiber.context = contexts.prepared(odd * fibers_.size() + i, &Cluster::enter);
      for (Group* group :
           {&warps_[static_cast<size_t>(fiber.warp)], &blocks_[static_cast<size_t>(fiber.block)], &all_}) {
        group->members.push_back(static_cast<int>(i));
        ++group->alive;
      }
    }
  }

  void run_to_the_end() {
    size_t left = fibers_.size();
    while (left > 0) {
      if (shuffles_) std::shuffle(order_.begin(), order_.end(), random_);
      bool progress = false;
      for (int i : order_) {
        Fiber& fiber = fibers_[static_cast<size_t>(i)];
        if (fiber.done || fiber.waits_for != nullptr) continue;
        progress = true;
        resume(fiber);
        left -= fiber.done;
      }
      if (!progress) stuck();
    }
  }

  [[noreturn]] static void enter() {
    arrive(running->scheduler_);
    acquire(&running->begin_);
    running->kernel_();
    release(&running->end_);
    running->finish();
    abort();
  }

  void check_places(const Group& group) {
    for (int i : group.members) {
      const Place& own = fibers_[static_cast<size_t>(i)].met_at;
      const Place& first = fibers_[static_cast<size_t>(i / kLanes * kLanes)].met_at;
      if (own.line() == first.line() && own.column() == first.column() && own.file_name() == first.file_name() &&
          own.function_name() == first.function_name()) {
        continue;
      }
      fail("lanes of a warp meet, some at " + describe(own) + ", some at " + describe(first));
    }
  }

  void resume(Fiber& fiber) {
    now_ = &fiber;
    switch_context(scheduler_, fiber.context);
    now_ = nullptr;
  }

  void leave(bool for_good) { switch_context(now_->context, scheduler_, for_good); }

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
  Context scheduler_ = own_context();
  const char begin_ = 0, end_ = 0;  // of the grid, for release() and acquire()
};

}  // namespace

ThreadState& current() { return running == nullptr || running->now() == nullptr ? outside : running->now()->state; }

void require_full_warp(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp function is called for part of a warp");
}

const uint64_t* meet_warp(Meeting kind, uint64_t value, const Place& place) {
  Group& warp = running->warp();
  const int phase = warp.phase;
  warp.value[phase][current().thread.x % kLanes] = value;
  const bool orders_memory = kind == Meeting::sync_warp;
  if (orders_memory) release(&warp.barrier[phase]);
  running->meet(warp, kind, false, place);
  if (orders_memory) acquire(&warp.barrier[phase]);
  return warp.value[phase];
}

int meet_block(Meeting kind, bool vote, const Place& place) {
  Group& block = running->block();
  const char* barrier = &block.barrier[block.phase];
  release(barrier);
  running->meet(block, kind, vote, place);
  acquire(barrier);
  return block.decided;
}

unsigned char* shared_memory() { return running->shared(running->rank()); }
int cluster_rank() { return running->rank(); }
void cluster_arrive() { release(&running->all().barrier[running->all().phase]); }
void cluster_wait(const Place& place) {
  Group& all = running->all();
  const char* barrier = &all.barrier[all.phase];
  running->meet(all, Meeting::sync_cluster, false, place);
  acquire(barrier);
}
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
  group.run(blocks);
  running = nullptr;
}

}  // namespace sumprod::gpu::emulation
