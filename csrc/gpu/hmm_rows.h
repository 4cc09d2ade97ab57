// Results made from the messages that the resident HMM passes keep (gpu/hmm_recursion.h), step by step and in
// parallel over all steps. Sequences that are flagged in `redo` are left alone; rows past a length are filled.
#pragma once

#include "core/hmm_problem.h"
#include "gpu/stream.h"

namespace sumprod::gpu {

struct HmmRows {
  HmmProblem problem;        // with pointers to device memory
  void *forward, *backward;  // predicted and backward messages, [batch, steps, states]
  const int32_t* exponents;  // of the forward pass, [batch, steps]
  uint8_t* redo;             // also set here: forward and backward messages that barely overlap
};

// log p(z_t | x_0 .. x_t), from the forward messages alone.
void filter_rows(const HmmRows& rows, void* filtered, const Stream& stream);

// log p(z_t | x).
void marginal_rows(const HmmRows& rows, void* marginals, const Stream& stream);

// log p(z_t = i, z_t+1 = j | x), [batch, steps - 1, states, states]. `shift` as for transition_counts.
void pairwise_rows(const HmmRows& rows, const double* shift, void* pairwise, const Stream& stream);

// upstream times p(z_t | x), and the same of the first step. With `keeps_pairs`, the messages are overwritten with
// what transition_counts multiplies: forward messages with their emissions, and backward messages with theirs, times
// upstream over the pair's total.
struct HmmGradientRows {
  const void* upstream;  // [batch]
  void* initial;         // [batch, states]
  void* emission;        // [batch, steps, states]
  bool keeps_pairs;
};
void gradient_rows(const HmmRows& rows, const HmmGradientRows& gradient, const Stream& stream);

// The largest finite log potential of each transition matrix, into `shift`: one double, or one per sequence where each
// has a matrix of its own; 0 where there is none.
int64_t shift_count(const HmmProblem& problem);
void transition_shift(const HmmProblem& problem, double* shift, const Stream& stream);

// Expected transition counts times upstream: sums over time, and over the batch, of what gradient_rows has left, in an
// order that depends on the sizes alone.
struct HmmCounts {
  const double* shift;
  double* partial;  // [count_units(), states, states]
  double* counts;   // [states, states]
};
int64_t count_units(const HmmProblem& problem);
void transition_counts(const HmmRows& rows, const HmmCounts& counts, const Stream& stream);

// The same for each sequence, [batch, states, states] in the problem's dtype.
void transition_counts_for_each(const HmmRows& rows, const double* shift, void* counts, const Stream& stream);

}  // namespace sumprod::gpu
