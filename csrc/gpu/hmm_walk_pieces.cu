#include "gpu/hmm_walk_pieces.h"

#include "gpu/hmm_length.cuh"
#include "gpu/hmm_pieces.h"
#include "gpu/hmm_walk_choice.cuh"

namespace sumprod::gpu {

namespace {

// Crossovers: estimated; to be measured on a GPU.
constexpr int64_t kLeastDividedSteps = 2048;   // below, three launches take as long as the walk
constexpr int64_t kThreadsAtWork = 8 * kWarp;  // walks of up to 16 states that a multiprocessor has at once
constexpr int64_t kWarpsAtWork = 16;           // walks of more states
constexpr int64_t kLeastGain = 4;              // pieces of a path at work
constexpr int64_t kLeastPieceSteps = 64;       // what the start of a walk costs
constexpr int64_t kMostMapBytes = 40 * 1024;   // of one path: phase 2 has them in shared memory

constexpr int kChainThreads = 512, kChainWarps = kChainThreads / kWarp;

// Steps of a piece.
int64_t piece_steps(const HmmWalk& walk, const Stream& stream) {
  const HmmProblem& p = walk.problem;
  if (p.states > kMostWarpStates) return p.steps;
  int64_t forced = 0, forced_range = 0;
  if (forced_pieces(&forced, &forced_range)) return forced;
  const int64_t walks = p.batch * walk.draws * p.states;
  const int64_t each = p.states <= kMostThreadStates ? kThreadsAtWork : kWarpsAtWork;
  const int64_t at_once = properties_of(stream.device).multiprocessors * each / walks;
  if (p.steps < kLeastDividedSteps || at_once < kLeastGain) return p.steps;
  const int64_t steps = ceil_of(p.steps, at_once);
  return steps < kLeastPieceSteps ? kLeastPieceSteps : steps;
}

// The scratch memory, or, with a null base, only its size.
int64_t place_pieces(const HmmWalk& walk, void* base, WalkPieces* pieces) {
  SharedArena arena(static_cast<unsigned char*>(base));
  const int64_t all = walk.problem.batch * walk.draws * pieces->count;
  pieces->maps = arena.take<uint8_t>(all * walk.problem.states);
  pieces->after = arena.take<uint8_t>(all);
  return arena.used();
}

struct ChainShared {
  uint8_t *map, *range_map;  // [piece][state]; [warp][state]
  uint8_t* after_range;      // [warp]
  int64_t bytes;
  SUMPROD_BOTH ChainShared(unsigned char* base, const WalkPieces& pieces, int64_t states) {
    SharedArena arena(base);
    map = arena.take<uint8_t>(pieces.count * states);
    range_map = arena.take<uint8_t>(kChainWarps * states);
    after_range = arena.take<uint8_t>(kChainWarps);
    bytes = arena.used();
  }
};

// One path per block. With the maps of all pieces but the last, which has one entry, in shared memory, every warp first
// makes one map of a range of them, for all states side by side; with the state after its range it goes through them
// once more.
__global__ void __launch_bounds__(kChainThreads) chain_kernel(HmmWalk walk, WalkPieces pieces) {
  const HmmProblem& p = walk.problem;
  const int states = int(p.states), lane = lane_of_thread(), warp = warp_of_thread();
  const int64_t path = blockIdx.x, sequence = path / walk.draws;
  const int length = length_on_device(p, sequence);
  if (length == 0 || walk.redo[sequence] != 0) return;
  const int last = int((length - 1) / pieces.steps), each = (last + kChainWarps - 1) / kChainWarps;
  const int begin = warp * each < last ? warp * each : last, end = begin + each < last ? begin + each : last;

  const ChainShared shared(shared_memory(), pieces, states);
  const uint8_t* from = pieces.maps + path * pieces.count * states;
  for (int k = int(threadIdx.x); k < last * states; k += int(blockDim.x)) shared.map[k] = from[k];
  __syncthreads();
  for (int z = lane; z < states; z += kWarp) {
    int state = z;
    for (int piece = end - 1; piece >= begin; --piece) state = shared.map[piece * states + state];
    shared.range_map[warp * states + z] = uint8_t(state);
  }
  __syncthreads();
  uint8_t* after = pieces.after + path * pieces.count;
  if (threadIdx.x == 0) {
    after[last] = uint8_t(states);
    int state = from[int64_t(last) * states];
    for (int w = kChainWarps - 1; w >= 0; --w) {
      shared.after_range[w] = uint8_t(state);
      state = shared.range_map[w * states + state];
    }
  }
  __syncthreads();
  if (lane != 0) return;
  int state = shared.after_range[warp];
  for (int piece = end - 1; piece >= begin; --piece) {
    after[piece] = uint8_t(state);
    state = shared.map[piece * states + state];
  }
}

}  // namespace

WalkPieces divide_walk(const HmmWalk& walk, const Stream& stream) {
  const HmmProblem& p = walk.problem;
  const int64_t most = kMostMapBytes / p.states, steps = piece_steps(walk, stream), least = ceil_of(p.steps, most);
  WalkPieces pieces = {};
  pieces.steps = steps < least ? least : steps;
  pieces.count = ceil_of(p.steps, pieces.steps);
  if (walk.scratch != nullptr) place_pieces(walk, walk.scratch, &pieces);
  return pieces;
}

int64_t walk_scratch_bytes(const HmmWalk& walk, const Stream& stream) {
  WalkPieces pieces = divide_walk(walk, stream);
  return pieces.count == 1 ? 0 : place_pieces(walk, nullptr, &pieces);
}

void chain_walk_maps(const HmmWalk& walk, const WalkPieces& pieces, const Stream& stream) {
  const int64_t bytes = ChainShared(nullptr, pieces, walk.problem.states).bytes;
  launch(chain_kernel, LaunchShape{walk.problem.batch * walk.draws, kChainThreads, bytes}, stream, walk, pieces);
}

}  // namespace sumprod::gpu
