// The arguments of the HMM kernels: plain pointers, extents and strides, shared by CPU and CUDA.
//
// With B sequences (batch dims flattened), T steps and S states, all log potentials:
//   log Z_b = log sum_z exp( initial[b, z_0] + sum_t transition[b, t, z_t, z_t+1]
//                            + sum_t emission[b, t, z_t] )
// over the paths z of the first lengths[b] steps. Strides are in elements; a stride of 0
// broadcasts. A homogeneous transition has time stride 0.
#pragma once

#include <stdint.h>

namespace sumprod {

struct HmmProblem {
  int64_t batch, steps, states;

  const void* initial;
  int64_t initial_batch, initial_state;

  const void* transition;
  int64_t transition_batch, transition_time, transition_from, transition_to;

  const void* emission;
  int64_t emission_batch, emission_time, emission_state;

  const int64_t* lengths;  // contiguous; null when every sequence has `steps` steps
  bool is_double;
};

inline int64_t length_of(const HmmProblem& p, int64_t sequence) {
  return p.lengths == nullptr ? p.steps : p.lengths[sequence];
}

// How numbers are held during a recursion; each tier is slower and covers more than the last.
enum class HmmTier {
  linear,           // scaled linear space, in the input's precision
  extended,         // mantissa and exponent apart, in the input's precision: no underflow
  extended_double,  // the same in double precision, for exponents that float cannot hold exactly
  max_plus,         // log space with max for sum (Viterbi), in the input's precision
  max_plus_double,  // the same in double precision, for states far behind the best one
};

// Which index runs along the lanes of a vector register.
enum class HmmLayout {
  lane_is_sequence,  // many sequences that share a transition matrix
  lane_is_state,     // one sequence at a time: small batches, or a transition matrix each
};

// Where a sequence runs: in which lane of its group, from which step of the lane on. With a
// homogeneous, shared transition a lane may take several sequences one after the other, so that
// ragged batches leave few lanes idle; the steps of one sequence are always consecutive.
struct HmmSegment {
  int64_t sequence, start;
  int lane;
};

// Segments start at multiples of this many steps, so that what a kernel does every few steps
// falls on the same steps of a sequence wherever it runs.
constexpr int64_t kHmmSegmentAlign = 4;

// One unit of work: sequences that travel together (one when lane_is_state), lane by lane, and in
// each lane in the order of time. `segments` is null when only sizes are asked for.
struct HmmGroup {
  const HmmSegment* segments;
  int64_t count;
  int64_t steps;  // of the longest lane
};

// Transition weights prepared once for all groups of a homogeneous chain; the Real type follows
// the tier. All null when each group prepares its own.
struct HmmWeights {
  const void* mantissa;
  const void* exponent;
  int64_t panel;
  double shift, lowest;
  bool dense, invalid;
};
struct HmmShared {
  HmmWeights forward, backward;
};

// One call of a group kernel. With `workspace` null nothing is computed and the kernel returns
// the bytes that it needs.
struct HmmTask {
  const HmmProblem* problem;
  const HmmShared* shared;
  HmmTier tier;
  HmmLayout layout;
  HmmGroup group;
  int64_t unit;         // which partial result this group may add to
  const void* outputs;  // the operator's own struct
  void* workspace;      // 64-byte aligned
  bool* redo;           // per segment of the group: run it again in the next tier
};

}  // namespace sumprod
