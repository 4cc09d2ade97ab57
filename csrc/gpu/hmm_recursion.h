// The resident HMM recursion on a GPU: what it is asked for, on the host's side and on the kernel's.
//
// It serves homogeneous transitions, up to kMostResidentStates states, and only numbers
// that it can be sure of: a sequence whose result may have suffered, is not finite, or has no path at all is
// reported in `redo`, and its outputs are to be made by the general kernels.
#pragma once

#include "core/hmm_problem.h"
#include "gpu/stream.h"

namespace sumprod::gpu {

constexpr int64_t kMostResidentStates = 128;

struct HmmRecursion {
  HmmProblem problem;      // with pointers to device memory
  bool forward, backward;  // which passes; both run side by side
  // What each pass leaves for every step, [batch, steps, states] in the problem's dtype, or null. Rows at and past a
  // length are not written. Forward: the message before the emission of the step is multiplied in (predicted), or
  // after. Backward: always before, which is the usual backward message b_t. Max-plus messages are logs. Each row is
  // relative to a scale of its own.
  void *forward_messages, *backward_messages;
  bool forward_predicted;
  // Binary exponent that the forward pass has added to each row, [batch, steps]; null when not wanted; linear only.
  int32_t* forward_exponents;
  void* total;    // [batch]: log normaliser or best score, from the forward pass; null when not wanted
  uint8_t* redo;  // [batch]: set to 1, never to 0
  void* scratch;  // memory of recursion_scratch_bytes(), 16-byte aligned; null where that is 0
  // Entries from one row of messages to the next, where that is more than `states`: up to 128 states at most 8, 16, 32,
  // 64 or 128, the first that holds them all; then at most the next multiple of 4. Those past the states are set to
  // zeros of the semiring. 0 stands for `states`.
  int64_t message_row;
};

// Whether the resident recursions serve these sizes and strides, with one transition matrix for all sequences or one
// for each.
inline bool is_resident(const HmmProblem& problem) {
  return problem.transition_time == 0 && problem.states <= kMostResidentStates && problem.batch > 0 &&
         problem.steps > 0;
}

// What the recursions below need as `scratch`: to run few long sequences in parallel over time (gpu/hmm_pieces.h), or
// many states step by step. By a rule that depends on sizes and on the device alone.
int64_t recursion_scratch_bytes(const HmmProblem& problem, const Stream& stream);

// More states than kMostResidentStates are served, too, with one transition matrix for all sequences: has_recursion().
constexpr int64_t kMostRecursionStates = 4096;
inline bool has_recursion(const HmmProblem& problem) {
  const bool large = problem.states > kMostResidentStates && problem.states <= kMostRecursionStates;
  return is_resident(problem) || (large && problem.transition_time == 0 && problem.transition_batch == 0 &&
                                  problem.batch > 0 && problem.steps > 0);
}

// Sums over paths, in scaled linear space, in the problem's precision.
void run_linear_recursion(const HmmRecursion& recursion, const Stream& stream);
// The best path; forward only.
void run_max_plus_recursion(const HmmRecursion& recursion, const Stream& stream);

}  // namespace sumprod::gpu
