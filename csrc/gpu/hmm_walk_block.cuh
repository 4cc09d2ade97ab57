// One step of a walk back through kept messages (gpu/hmm_walk.cuh) for more states than one warp holds.
//
// A step waits for the column of the next state from the L2 cache, a few hundred clocks, and then for the warps to
// agree: one block barrier for the best state, two for a draw. Threads have few entries each, so that neighbours read
// side by side, 16 bytes at once.
#pragma once

#include "gpu/hmm_recursion.h"
#include "gpu/hmm_walk_choice.cuh"

namespace sumprod::gpu {

// Steps take long enough that few have to be read ahead, and threads are many.
template <class Real>
constexpr int kBlockWalkTile = sizeof(Real) == 4 ? 2 : 1;
constexpr int kMostBlockWalkThreads = 1024;
static_assert(kMostBlockWalkThreads * kBlockWalkEntries == kMostRecursionStates);

template <class A_>
class BlockChoice : public WarpChoice<A_, kBlockWalkEntries, kBlockWalkTile<typename A_::Real>> {
 public:
  using A = A_;
  using Real = typename A::Real;
  using Warp = WarpChoice<A, kBlockWalkEntries, kBlockWalkTile<Real>>;
  using Warp::kEntries;

  static int64_t shared_bytes() { return Shared(nullptr).bytes; }

  SUMPROD_DEVICE explicit BlockChoice(int states)
      : Warp(states),
        row_(int(blockDim.x) * kEntries),
        warps_(int(blockDim.x) / kWarp),
        first_of_warp_(unsigned(warp_of_thread()) * kMostWarpStates),
        shared_(shared_memory()) {}

  SUMPROD_DEVICE void use(const Real* columns) { columns_ = columns + int(threadIdx.x) * kEntries; }
  // Threads without states read what others read.
  SUMPROD_DEVICE int first_read(int row) const {
    const int first = int(threadIdx.x) * kEntries;
    return first < row ? first : row - kEntries;
  }

  SUMPROD_DEVICE int choose(const Real (&message)[kEntries], Real uniform, int next) {
    Real w[kEntries];
    weigh<A>(message, columns_ + int64_t(next) * row_, w);
    if constexpr (A::kMaxPlus) {
      return best(w);
    } else {
      return draw(w, uniform);
    }
  }

  // By the first warp.
  template <bool kWhole>
  SUMPROD_DEVICE void end_tile(int64_t* last, int done, int count) const {
    if (threadIdx.x < kWarp) Warp::template end_tile<kWhole>(last, done, count);
  }

 private:
  using typename Warp::Key;
  using Warp::columns_;
  using Warp::kNone;
  static constexpr int kMostWarps = kMostBlockWalkThreads / kWarp;
  static_assert(kMostWarps == kWarp);

  struct Shared {
    Key* key;                // [2][warp]: of its best entry
    unsigned* state;         // which that is
    unsigned *first, *last;  // [warp]: the first above the threshold, the last of positive weight
    Real* total;             // [warp]: sum of its weights
    int64_t bytes;
    SUMPROD_BOTH explicit Shared(unsigned char* base) {
      SharedArena arena(base);
      key = arena.take<Key>(2 * kMostWarps);
      state = arena.take<unsigned>(2 * kMostWarps);
      first = arena.take<unsigned>(kMostWarps);
      last = arena.take<unsigned>(kMostWarps);
      total = arena.take<Real>(kMostWarps);
      bytes = arena.used();
    }
  };

  // Two steps take turns with the shared memory, so that one barrier per step is enough.
  SUMPROD_DEVICE int best(Real (&w)[kEntries]) {
    const int at = turn_ * kMostWarps, lane = lane_of_thread(), warp = warp_of_thread();
    turn_ ^= 1;
    Key key;
    const unsigned own = first_of_warp_ + Warp::best(w, &key);
    if (lane == 0) {
      shared_.key[at + warp] = key;
      shared_.state[at + warp] = own;
    }
    __syncthreads();
    key = lane < warps_ ? shared_.key[at + lane] : Key(0);
    const bool top = key == top_of_warp(key);
    return int(__reduce_min_sync(kFullWarp, top && lane < warps_ ? shared_.state[at + lane] : kNone));
  }

  SUMPROD_DEVICE int draw(Real (&w)[kEntries], Real uniform) const {
    const int lane = lane_of_thread(), warp = warp_of_thread();
    const typename Warp::Weights sums(*this, w);
    const Real own_total = sums.total();
    if (lane == 0) shared_.total[warp] = own_total;
    __syncthreads();
    const Real through = Warp::sum_of_lanes(lane < warps_ ? shared_.total[lane] : Real(0));
    const Real before = __shfl_sync(kFullWarp, through, warp == 0 ? 0 : warp - 1);
    const Real threshold = uniform * __shfl_sync(kFullWarp, through, kWarp - 1);
    const unsigned first = sums.first_above(*this, w, warp == 0 ? Real(0) : before, threshold);
    const unsigned last = Warp::last_of(sums.positive);
    if (lane == 0) {
      shared_.first[warp] = first == kNone ? kNone : first_of_warp_ + first;
      shared_.last[warp] = own_total > Real(0) ? first_of_warp_ + last : 0u;
    }
    __syncthreads();
    const unsigned state = __reduce_min_sync(kFullWarp, lane < warps_ ? shared_.first[lane] : kNone);
    if (state != kNone) return int(state);
    return int(__reduce_max_sync(kFullWarp, lane < warps_ ? shared_.last[lane] : 0u));
  }

  const int row_, warps_;
  const unsigned first_of_warp_;
  const Shared shared_;
  int turn_ = 0;
};

}  // namespace sumprod::gpu
