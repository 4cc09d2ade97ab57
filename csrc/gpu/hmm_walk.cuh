// Walks back through kept messages (gpu/hmm_walk.h).
//
// Three ways to make a choice among the states (gpu/hmm_walk_choice.cuh):
//   ThreadChoice  up to 16 states: one thread holds them all, and no lane waits for another;
//   WarpChoice    up to 128 states: lanes hold PerLane neighbouring states each;
//   BlockChoice   the warps of a block hold 128 states each (gpu/hmm_walk_block.cuh).
// Messages do not depend on the path, so they are read a tile of steps early, into registers. All that a step waits for
// is the column of the next state, from shared memory where the matrix fits, and the choice itself.
//
// What is walked is a stretch of one sequence, towards its beginning, from a given state or from none. A `Stretches`
// says which there are and takes what was found (gpu/hmm_walk_parts.cuh):
//   int64_t count;
//   bool stretch(int64_t unit, Stretch<Real>* s);        false: nothing to walk
//   void finish(int64_t unit, int state, int lane, int lanes);  state of its first step, -1 if nothing was walked;
//                                                        called by `lanes` lanes, or by one
#pragma once

#include "gpu/hmm_walk_block.cuh"

namespace sumprod::gpu {

template <class Choice>
class Walk {
 public:
  using A = typename Choice::A;
  using Real = typename A::Real;
  static constexpr int kTile = Choice::kTile;

  SUMPROD_DEVICE explicit Walk(int states) : choice_(states), row_(walk_message_entries<Real>(states)) {}

  // The state of the stretch's first step; its count is positive.
  SUMPROD_DEVICE int run(const Stretch<Real>& s, const Real* columns) {
    choice_.use(columns);
    const int64_t end = s.first + s.count - 1;
    state_ = s.next;
    count_ = s.count;
    messages_ = s.messages + end * row_ + choice_.first_read(row_);
    if constexpr (!A::kMaxPlus) uniforms_ = s.uniforms + end;
    int64_t* path = s.path == nullptr ? nullptr : s.path + end;
    load_tile<false>(0);
    int done = 0;
    for (; done + 2 * kTile <= count_; done += kTile) run_tile<true>(path, done);
    for (; done < count_; done += kTile) run_tile<false>(path, done);
    return state_;
  }

 private:
  // The steps from `done` steps before the end on. Near the beginning of the stretch some of them, and of those of the
  // tile after them, do not exist (not `kWhole`).
  template <bool kWhole>
  SUMPROD_DEVICE void run_tile(int64_t* path, int done) {
    Real message[kTile][Choice::kEntries], uniform[kTile];
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      uniform[k] = uniform_[k];
#pragma unroll
      for (int i = 0; i < Choice::kEntries; ++i) message[k][i] = message_[k][i];
    }
    load_tile<kWhole>(done + kTile);
    choice_.begin_tile(done);
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      if (kWhole || done + k < count_) {
        state_ = choice_.choose(message[k], uniform[k], state_);
        choice_.note(k, state_);
      }
    }
    choice_.template end_tile<kWhole>(path, done, count_);
  }

  template <bool kWhole>
  SUMPROD_DEVICE void load_tile(int done) {
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const int64_t n = kWhole || done + k < count_ ? done + k : count_ - 1;
      load_message(messages_ - n * row_, message_[k]);
      if constexpr (!A::kMaxPlus) uniform_[k] = uniforms_[-n];
    }
  }

  Choice choice_;
  const int row_;
  int state_ = 0, count_ = 0;
  const Real *messages_ = nullptr, *uniforms_ = nullptr;  // of the last step
  Real message_[kTile][Choice::kEntries];                 // of the tile to come
  Real uniform_[kTile] = {};
};

// A copy of the only matrix in shared memory, or null.
template <class Real, bool kShared>
SUMPROD_DEVICE const Real* shared_walk_columns(const HmmWalk& args) {
  if constexpr (!kShared) return nullptr;
  using Piece = Pack<Real, 16 / int(sizeof(Real))>;
  Piece* copy = reinterpret_cast<Piece*>(shared_memory());
  const int pieces = int(walk_matrix<Real>(args.problem.states)) * int(sizeof(Real)) / 16;
  for (int k = int(threadIdx.x); k < pieces; k += int(blockDim.x)) copy[k] = static_cast<const Piece*>(args.columns)[k];
  __syncthreads();
  return reinterpret_cast<const Real*>(copy);
}

constexpr int kMostWalkThreads = 256;

template <class A, int PerLane, bool kShared, class Stretches>
__global__ void __launch_bounds__(kMostWalkThreads) walk_by_warp_kernel(HmmWalk args, Stretches stretches) {
  using Real = typename A::Real;
  const Real* columns = shared_walk_columns<Real, kShared>(args);
  Walk<WarpChoice<A, PerLane>> walk(int(args.problem.states));
  const int warps = int(blockDim.x) / kWarp;
  const int64_t all = int64_t(gridDim.x) * warps;
  for (int64_t unit = int64_t(blockIdx.x) * warps + warp_of_thread(); unit < stretches.count; unit += all) {
    Stretch<Real> s;
    const int state = stretches.stretch(unit, &s) ? walk.run(s, kShared ? columns : s.columns) : -1;
    stretches.finish(unit, state, lane_of_thread(), kWarp);
  }
}

// One block per stretch.
template <class A, class Stretches>
__global__ void __launch_bounds__(kMostBlockWalkThreads) walk_by_block_kernel(HmmWalk args, Stretches stretches) {
  using Real = typename A::Real;
  Walk<BlockChoice<A>> walk(int(args.problem.states));
  for (int64_t unit = blockIdx.x; unit < stretches.count; unit += gridDim.x) {
    Stretch<Real> s;
    const int state = stretches.stretch(unit, &s) ? walk.run(s, s.columns) : -1;
    stretches.finish(unit, state, int(threadIdx.x), int(blockDim.x));
  }
}

// `lanes` of each warp walk: fewer where there are too few stretches to keep all warps busy, because what one warp
// reads for many sequences lies in many places.
template <class A, int States, bool kShared, class Stretches>
__global__ void __launch_bounds__(kMostWalkThreads)
    walk_by_thread_kernel(HmmWalk args, Stretches stretches, int lanes) {
  using Real = typename A::Real;
  const Real* columns = shared_walk_columns<Real, kShared>(args);
  Walk<ThreadChoice<A, States>> walk(int(args.problem.states));
  if (lane_of_thread() >= lanes) return;
  const int warps = int(blockDim.x) / kWarp;
  const int64_t all = int64_t(gridDim.x) * warps * lanes;
  int64_t unit = (int64_t(blockIdx.x) * warps + warp_of_thread()) * lanes + lane_of_thread();
  for (; unit < stretches.count; unit += all) {
    Stretch<Real> s;
    const int state = stretches.stretch(unit, &s) ? walk.run(s, kShared ? columns : s.columns) : -1;
    stretches.finish(unit, state, 0, 1);
  }
}

// ---- launches -------------------------------------------------------------------------------------

// `work` warps, spread over all multiprocessors before they fill one. A block that walks several units after each
// other reads the matrix once.
inline LaunchShape walk_shape(int64_t work, int64_t shared_bytes, const DeviceProperties& device) {
  constexpr int64_t kMostWarps = kMostWalkThreads / kWarp, kMostBlocksEach = 8;
  int64_t warps = (work + device.multiprocessors - 1) / device.multiprocessors;
  warps = warps < 1 ? 1 : (warps > kMostWarps ? kMostWarps : warps);
  int64_t each = shared_bytes == 0 ? kMostBlocksEach : device.shared_bytes / shared_bytes;
  each = each < 1 ? 1 : (each > kMostBlocksEach ? kMostBlocksEach : each);
  const int64_t blocks = (work + warps - 1) / warps, most = each * device.multiprocessors;
  return {blocks < most ? blocks : most, int(warps) * kWarp, shared_bytes};
}

// What blocks need to copy the matrix, or 0 where they do not.
inline int64_t shared_walk_bytes(const HmmWalk& args, const DeviceProperties& device) {
  const int64_t bytes = walk_columns_bytes(args.problem);
  return walk_matrices(args.problem) == 1 && bytes <= device.shared_bytes ? bytes : 0;
}

template <class A, int PerLane, class Stretches>
void walk_by_warp(const HmmWalk& args, const Stretches& stretches, const Stream& stream) {
  const DeviceProperties& device = properties_of(stream.device);
  const int64_t bytes = shared_walk_bytes(args, device);
  const auto kernel =
      bytes > 0 ? walk_by_warp_kernel<A, PerLane, true, Stretches> : walk_by_warp_kernel<A, PerLane, false, Stretches>;
  launch(kernel, walk_shape(stretches.count, bytes, device), stream, args, stretches);
}

template <class A, int States, class Stretches>
void walk_by_thread(const HmmWalk& args, const Stretches& stretches, const Stream& stream) {
  constexpr int64_t kWarpsEach = 8;  // keep a multiprocessor busy; estimated, to be measured on a GPU
  const DeviceProperties& device = properties_of(stream.device);
  const int64_t all = device.multiprocessors * kWarpsEach;
  int64_t lanes = (stretches.count + all - 1) / all;
  lanes = lanes < 1 ? 1 : (lanes > kWarp ? kWarp : lanes);
  const int64_t warps = (stretches.count + lanes - 1) / lanes, bytes = shared_walk_bytes(args, device);
  const auto kernel = bytes > 0 ? walk_by_thread_kernel<A, States, true, Stretches>
                                : walk_by_thread_kernel<A, States, false, Stretches>;
  launch(kernel, walk_shape(warps, bytes, device), stream, args, stretches, int(lanes));
}

template <class A, class Stretches>
void walk_by_block(const HmmWalk& args, const Stretches& stretches, const Stream& stream) {
  constexpr int64_t kThreadsEach = 2048;  // that a multiprocessor holds
  const int threads = walk_row<typename A::Real>(args.problem.states) / BlockChoice<A>::kEntries;
  const int64_t most = properties_of(stream.device).multiprocessors * (kThreadsEach / threads);
  const LaunchShape shape{stretches.count < most ? stretches.count : most, threads, BlockChoice<A>::shared_bytes()};
  launch(walk_by_block_kernel<A, Stretches>, shape, stream, args, stretches);
}

// By number of states; up to 4096 (kMostRecursionStates).
template <class A, class Stretches>
void walk_stretches(const HmmWalk& args, const Stretches& stretches, const Stream& stream) {
  const int64_t states = args.problem.states;
  if (states <= 8) return walk_by_thread<A, 8>(args, stretches, stream);
  if (states <= kMostThreadStates) return walk_by_thread<A, 16>(args, stretches, stream);
  if (states <= 32) return walk_by_warp<A, 1>(args, stretches, stream);
  if (states <= 64) return walk_by_warp<A, 2>(args, stretches, stream);
  if (states <= kMostWarpStates) return walk_by_warp<A, 4>(args, stretches, stream);
  walk_by_block<A>(args, stretches, stream);
}

}  // namespace sumprod::gpu
