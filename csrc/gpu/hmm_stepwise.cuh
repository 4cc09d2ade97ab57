// The HMM recursion for any number of states, one launch per step: for GPUs without clusters, and for matrices that
// no cluster holds.
//
// Weights and messages are read from the L2 cache. A block makes the messages of kTileSequences sequences in
// kTileColumns states: its warps share the rows of the matrix, a lane adds up 4 sequences times 4 columns, and the
// warps' sums are added in shared memory, in order. Correction of the scale and emission follow in the same kernel.
// Launches: how many depends on sizes alone, so that a CUDA graph can hold them; steps past the longest of a tile
// return at once.
//
// For B = 64 and S = 1024, float: 128 blocks with 4096 clocks of multiply-adds and 192 KB from L2 each, so about 5 us
// per step with the launch.
#pragma once

#include "gpu/hmm_large.h"
#include "gpu/hmm_length.cuh"
#include "gpu/hmm_trust.cuh"

namespace sumprod::gpu {

constexpr int kTileSequences = 16, kTileColumns = 32;
constexpr int kStepThreads = 256, kStepWarps = kStepThreads / kWarp;
constexpr int kSummaryBlocks = 64;

// The scratch memory, or, with a null base, only its size. A slot is one pass over one sequence.
template <class A>
struct StepwiseMemory {
  using Real = typename A::Real;
  int64_t padded;  // states, to whole tiles
  int64_t tiles;   // of sequences, per direction

  Real* weight;                  // [direction][row][column], exponentiated; backward ones transposed
  Real* message;                 // [step % 2][tile of slots][state][sequence of the tile]
  unsigned* key;                 // [step % 4][slot]: of the largest entry
  Real* top;                     // [batch][step]: the largest emission
  Real* first;                   // [batch][2]: of the initial potential, and of both together
  typename A::Scale* scale;      // [step % 2][slot]
  typename A::ScaleSum* scales;  // [slot]
  TransitionSummary* partial;    // [kSummaryBlocks]
  WeightSummary* summary;        // []
  int64_t bytes;

  StepwiseMemory(const HmmProblem& p, void* base) {
    SharedArena arena(static_cast<unsigned char*>(base));
    padded = (p.states + kTileColumns - 1) / kTileColumns * kTileColumns;
    tiles = (p.batch + kTileSequences - 1) / kTileSequences;
    const int64_t slots = 2 * tiles * kTileSequences;
    weight = arena.take<Real>(2 * padded * padded);
    message = arena.take<Real>(2 * slots * padded);
    key = arena.take<unsigned>(4 * slots);
    top = arena.take<Real>(p.batch * p.steps);
    first = arena.take<Real>(2 * p.batch);
    scale = arena.take<typename A::Scale>(2 * slots);
    scales = arena.take<typename A::ScaleSum>(slots);
    partial = arena.take<TransitionSummary>(kSummaryBlocks);
    summary = arena.take<WeightSummary>(1);
    bytes = arena.used();
  }

  SUMPROD_DEVICE int64_t slots() const { return 2 * tiles * kTileSequences; }
  SUMPROD_DEVICE unsigned& key_of(int64_t t, int64_t slot) const { return key[(t & 3) * slots() + slot]; }
  SUMPROD_DEVICE typename A::Scale& scale_of(int64_t t, int64_t slot) const { return scale[(t & 1) * slots() + slot]; }
  SUMPROD_DEVICE Real* messages_of(int64_t t, int64_t tile) const {
    return message + ((t & 1) * 2 * tiles + tile) * padded * kTileSequences;
  }
};

// 0 past the last sequence.
SUMPROD_DEVICE int64_t steps_of(const HmmProblem& p, int64_t sequence) {
  return sequence < p.batch ? length_on_device(p, sequence) : 0;
}

// ---- before the first step

template <class A>
__global__ void __launch_bounds__(kStepThreads) stepwise_summary_kernel(HmmProblem p, StepwiseMemory<A> memory) {
  using Real = typename A::Real;
  const Real* potential = static_cast<const Real*>(p.transition);
  TransitionSummary summary;
  const int64_t square = p.steps > 1 ? p.states * p.states : 0, stride = int64_t(gridDim.x) * kStepThreads;
  for (int64_t k = int64_t(blockIdx.x) * kStepThreads + threadIdx.x; k < square; k += stride) {
    summary.add(potential[k / p.states * p.transition_from + k % p.states * p.transition_to]);
  }
  summary.highest = warp_max(summary.highest);
  summary.lowest = -warp_max(-summary.lowest);
  summary.zero = __any_sync(kFullWarp, summary.zero) != 0;
  summary.invalid = __any_sync(kFullWarp, summary.invalid) != 0;
  auto* of_warp = reinterpret_cast<TransitionSummary*>(shared_memory());
  if (lane_of_thread() == 0) of_warp[warp_of_thread()] = summary;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kStepWarps; ++w) summary.add_all(of_warp[w]);
  memory.partial[blockIdx.x] = summary;
}

template <class A>
__global__ void __launch_bounds__(kStepThreads) stepwise_weights_kernel(HmmRecursion args, StepwiseMemory<A> memory) {
  using Real = typename A::Real;
  const HmmProblem& p = args.problem;
  TransitionSummary all;
  for (int b = 0; b < kSummaryBlocks; ++b) all.add_all(memory.partial[b]);
  const WeightSummary summary = all.weights<A>();
  const int64_t first = int64_t(blockIdx.x) * kStepThreads + threadIdx.x, stride = int64_t(gridDim.x) * kStepThreads;
  if (first == 0) *memory.summary = summary;
  const Real* potential = static_cast<const Real*>(p.transition);
  const int64_t square = memory.padded * memory.padded;
  for (int64_t k = first; k < 2 * square; k += stride) {
    const bool transposed = k >= square;
    if (transposed ? !args.backward : !args.forward) continue;
    const int64_t row = k % square / memory.padded, column = k % memory.padded;
    const int64_t from = transposed ? column : row, to = transposed ? row : column;
    Real x = -infinity<Real>();
    if (p.steps > 1 && row < p.states && column < p.states) {
      x = potential[from * p.transition_from + to * p.transition_to];
    }
    memory.weight[k] = A::weight(x, Real(summary.shift));
  }
  for (int64_t slot = first; slot < memory.slots(); slot += stride) {
    for (int n = 0; n < 4; ++n) memory.key_of(n, slot) = 0;
    memory.scales[slot] = 0;
  }
}

// One warp per step: its largest emission, and at the first step those that start() of the other recursions finds.
template <class A>
__global__ void __launch_bounds__(kStepThreads) stepwise_tops_kernel(HmmProblem p, StepwiseMemory<A> memory) {
  using Real = typename A::Real;
  const int64_t stride = int64_t(gridDim.x) * kStepWarps;
  for (int64_t row = int64_t(blockIdx.x) * kStepWarps + warp_of_thread(); row < p.batch * p.steps; row += stride) {
    const int64_t b = row / p.steps, t = row % p.steps;
    if (t >= steps_of(p, b)) continue;
    const Real* emission = static_cast<const Real*>(p.emission) + b * p.emission_batch + t * p.emission_time;
    const Real* initial = static_cast<const Real*>(p.initial) + b * p.initial_batch;
    const auto largest = [&](auto potential) {
      Real top = -infinity<Real>();
      for (int64_t s = lane_of_thread(); s < p.states; s += kWarp) {
        const Real x = potential(s);
        top = x > top ? x : top;
      }
      return or_zero(warp_max(top));
    };
    const Real top = largest([&](int64_t s) { return emission[s * p.emission_state]; });
    if (lane_of_thread() == 0) memory.top[row] = top;
    if (t > 0) continue;
    const Real initial_top = largest([&](int64_t s) { return initial[s * p.initial_state]; });
    const Real both = largest([&](int64_t s) {
      return (initial[s * p.initial_state] - initial_top) + (emission[s * p.emission_state] - top);
    });
    if (lane_of_thread() == 0) {
      memory.first[2 * b] = initial_top;
      memory.first[2 * b + 1] = both;
    }
  }
}

// ---- steps

template <class A>
class StepTile {
 public:
  using Real = typename A::Real;
  static constexpr int kSide = 4;  // of what one lane adds up

  static int64_t shared_bytes() { return int64_t(kStepWarps) * kTileSequences * kTileColumns * sizeof(Real); }

  SUMPROD_DEVICE StepTile(const HmmRecursion& args, const StepwiseMemory<A>& memory, int64_t t)
      : args_(args), p_(args.problem), memory_(memory), t_(t) {
    const int64_t columns = memory.padded / kTileColumns, tile = int64_t(blockIdx.x) / columns;
    backward_ = !args.forward || tile >= memory.tiles;
    tile_ = tile % memory.tiles + (backward_ ? memory.tiles : 0);
    first_sequence_ = tile % memory.tiles * kTileSequences;
    first_column_ = int64_t(blockIdx.x) % columns * kTileColumns;
  }

  SUMPROD_DEVICE void run() {
    if (!__syncthreads_or(threadIdx.x < kTileSequences && t_ < steps_of(p_, first_sequence_ + threadIdx.x))) return;
    if (t_ > 0) propagate();
    __syncthreads();
    trust_.watch(*memory_.summary);
    for (int s = warp_of_thread(); s < kTileSequences; s += kStepWarps) finish(s);
  }

 private:
  // The sums of every warp into shared memory, [warp][sequence][column].
  SUMPROD_DEVICE void propagate() {
    const int sequences = lane_of_thread() / 8 * kSide, columns = lane_of_thread() % 8 * kSide;
    const Real* message = memory_.messages_of(t_ - 1, tile_) + sequences;
    const Real* weight = memory_.weight + (backward_ ? memory_.padded * memory_.padded : 0) + first_column_ + columns;
    Real sum[kSide][kSide];
#pragma unroll
    for (int s = 0; s < kSide; ++s) {
#pragma unroll
      for (int c = 0; c < kSide; ++c) sum[s][c] = A::zero();
    }
#pragma unroll 4
    for (int64_t row = warp_of_thread(); row < memory_.padded; row += kStepWarps) {
      const auto m = *reinterpret_cast<const Four<Real>*>(message + row * kTileSequences);
      const auto w = *reinterpret_cast<const Four<Real>*>(weight + row * memory_.padded);
      const Real from[kSide] = {m.x, m.y, m.z, m.w}, by[kSide] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int s = 0; s < kSide; ++s) {
#pragma unroll
        for (int c = 0; c < kSide; ++c) sum[s][c] = A::accumulate(sum[s][c], from[s], by[c]);
      }
    }
    Real* shared = reinterpret_cast<Real*>(shared_memory());
#pragma unroll
    for (int s = 0; s < kSide; ++s) {
      const int at = (warp_of_thread() * kTileSequences + sequences + s) * kTileColumns + columns;
      *reinterpret_cast<Four<Real>*>(shared + at) = {sum[s][0], sum[s][1], sum[s][2], sum[s][3]};
    }
  }

  SUMPROD_DEVICE Real sum_of(int s) const {
    if (t_ == 0) return A::one();
    const Real* shared = reinterpret_cast<const Real*>(shared_memory());
    Real sum = A::zero();
    for (int w = 0; w < kStepWarps; ++w) {
      sum = A::merge(sum, shared[(w * kTileSequences + s) * kTileColumns + lane_of_thread()]);
    }
    return sum;
  }

  // The message of one sequence, by one warp: a lane per column.
  SUMPROD_DEVICE void finish(int s) {
    const int64_t b = first_sequence_ + s, slot = tile_ * kTileSequences + s;
    const int64_t length = steps_of(p_, b);
    if (t_ >= length) return;  // the same for the warp
    trust_.redo = false;
    const int64_t column = first_column_ + lane_of_thread(), time = backward_ ? length - 1 - t_ : t_;
    typename A::Scale scale = 0;
    if (t_ >= 2) {
      const unsigned key = memory_.key_of(t_ - 2, slot);
      trust_.note_depth(key);
      scale = A::correction(key, memory_.scale_of(t_ - 1, slot));
    }
    const bool real = column < p_.states;
    const Real raw = real ? emission(b, time, column) : -infinity<Real>(), sum = sum_of(s);
    const Real predicted = A::rescaled(sum, scale), message = A::with_emission(predicted, factor(b, time, column, raw));
    trust_.check(sum, message, raw > -infinity<Real>());
    if (trust_.redo) raise_flag(args_.redo + b);
    Real* kept = static_cast<Real*>(backward_ ? args_.backward_messages : args_.forward_messages);
    const bool keeps_predicted = backward_ || args_.forward_predicted;
    if (kept != nullptr && column < args_.message_row) {
      kept[(b * p_.steps + time) * args_.message_row + column] = keeps_predicted ? predicted : message;
    }
    memory_.messages_of(t_, tile_)[column * kTileSequences + s] = message;
    const unsigned key = __reduce_max_sync(kFullWarp, A::key(message));
    if (lane_of_thread() != 0) return;
    atomicMax(&memory_.key_of(t_, slot), key);
    if (first_column_ > 0) return;
    memory_.key_of(t_ + 1, slot) = 0;
    memory_.scale_of(t_, slot) = scale;
    memory_.scales[slot] += scale;
    if constexpr (!A::kMaxPlus) {
      if (args_.forward_exponents != nullptr && !backward_) args_.forward_exponents[b * p_.steps + time] = scale;
    }
  }

  SUMPROD_DEVICE Real emission(int64_t b, int64_t time, int64_t column) const {
    return static_cast<const Real*>(
        p_.emission)[b * p_.emission_batch + time * p_.emission_time + column * p_.emission_state];
  }

  SUMPROD_DEVICE Real factor(int64_t b, int64_t time, int64_t column, Real raw) const {
    const Real top = memory_.top[b * p_.steps + time];
    if (t_ > 0 || backward_ || column >= p_.states) return A::factor(raw, top);
    const Real initial = static_cast<const Real*>(p_.initial)[b * p_.initial_batch + column * p_.initial_state];
    return A::factor((initial - memory_.first[2 * b]) + (raw - top), memory_.first[2 * b + 1]);
  }

  const HmmRecursion& args_;
  const HmmProblem& p_;
  const StepwiseMemory<A>& memory_;
  HmmTrust<A> trust_;
  int64_t t_, tile_, first_sequence_, first_column_;
  bool backward_;
};

template <class A>
__global__ void __launch_bounds__(kStepThreads, 2) step_kernel(HmmRecursion args, StepwiseMemory<A> memory, int64_t t) {
  StepTile<A>(args, memory, t).run();
}

// ---- after the last step

// One warp per sequence.
template <class A>
__global__ void __launch_bounds__(kStepThreads) stepwise_total_kernel(HmmRecursion args, StepwiseMemory<A> memory) {
  using Real = typename A::Real;
  const HmmProblem& p = args.problem;
  const int64_t b = int64_t(blockIdx.x) * kStepWarps + warp_of_thread();
  if (b >= p.batch) return;
  const int64_t length = steps_of(p, b), tile = b / kTileSequences, s = b % kTileSequences;
  HmmTrust<A> trust;
  trust.watch(*memory.summary);
  double value = 0.0;  // a sequence without steps has one path, of weight 1
  if (args.forward && length > 0) {
    Real total = A::zero();
    double tops = 0.0;
    const Real* message = memory.messages_of(length - 1, tile);
    for (int64_t i = lane_of_thread(); i < memory.padded; i += kWarp) {
      total = A::merge(total, message[i * kTileSequences + s]);
    }
    for (int64_t t = lane_of_thread(); t < length; t += kWarp) tops += double(memory.top[b * p.steps + t]);
    for (int d = kWarp / 2; d > 0; d /= 2) total = A::merge(total, __shfl_xor_sync(kFullWarp, total, d));
    tops = warp_sum(tops) + double(memory.first[2 * b]) + double(memory.first[2 * b + 1]);
    trust.note_depth(A::key(total));
    if (length > 1) trust.note_depth(memory.key_of(length - 2, b));
    value = (A::kMaxPlus ? double(total) : log(double(total))) + tops + A::log_of(double(memory.scales[b])) +
            memory.summary->shift * double(length - 1);
  }
  if (lane_of_thread() != 0) return;
  if (!(value - value == 0.0) || ((trust.redo || trust.hopeless) && length > 0)) {
    raise_flag(args.redo + b);
  } else if (args.forward && args.total != nullptr) {
    static_cast<Real*>(args.total)[b] = Real(value);
  }
}

template <class A>
void launch_stepwise(const HmmRecursion& args, const Stream& stream) {
  const HmmProblem& p = args.problem;
  const StepwiseMemory<A> memory(p, args.scratch);
  const int64_t most = 8 * properties_of(stream.device).multiprocessors;
  const auto blocks = [most](int64_t work, int64_t per_block) {
    const int64_t wanted = (work + per_block - 1) / per_block;
    return wanted < most ? wanted : most;
  };
  const int64_t summaries = int64_t(kStepWarps) * sizeof(TransitionSummary);
  launch(stepwise_summary_kernel<A>, LaunchShape{kSummaryBlocks, kStepThreads, summaries}, stream, p, memory);
  launch(stepwise_weights_kernel<A>, LaunchShape{blocks(2 * memory.padded * memory.padded, kStepThreads), kStepThreads},
         stream, args, memory);
  launch(stepwise_tops_kernel<A>, LaunchShape{blocks(p.batch * p.steps, kStepWarps), kStepThreads}, stream, p, memory);
  const int64_t tiles = memory.tiles * (int(args.forward) + int(args.backward));
  const LaunchShape shape{tiles * (memory.padded / kTileColumns), kStepThreads, StepTile<A>::shared_bytes()};
  for (int64_t t = 0; t < p.steps; ++t) launch(step_kernel<A>, shape, stream, args, memory, t);
  launch(stepwise_total_kernel<A>, LaunchShape{(p.batch + kStepWarps - 1) / kStepWarps, kStepThreads}, stream, args,
         memory);
}

}  // namespace sumprod::gpu
