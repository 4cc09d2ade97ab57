// log Z of a hidden Markov model, and its gradient.
//
//   log_normalizer[b] = log sum over paths z of exp(score_b(z))          (score: core/hmm_problem.h)
//   d log_normalizer[b] / d emission[b,t,s]       = p(z_t = s | x_b)          =: gamma
//   d log_normalizer[b] / d initial[b,s]          = gamma[b,0,s]
//   d log_normalizer[b] / d transition[b,t,i,j]   = p(z_t = i, z_t+1 = j | x_b)
//
// A sequence of length 0 has log normaliser 0. An impossible one has -inf and zero gradients; NaN
// (or +inf) anywhere in a sequence makes its results NaN. Accumulation over time is in double.
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

struct HmmLogNormalizerOutputs {
  void* log_normalizer;  // [batch]
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_log_normalizer_group, (const HmmTask&))

// How the gradient with respect to the transition is laid out.
enum class TransitionGradient {
  shared,        // homogeneous, one matrix: [units, S, S] partial sums in double
  shared_steps,  // time-varying, shared by the batch: [1, T-1, S, S] in double
  own,           // homogeneous, one matrix per sequence: [batch, 1, S, S]
  own_steps,     // [batch, T-1, S, S]
};
struct HmmLogNormalizerGradients {
  const void* upstream;  // [batch], contiguous
  void* initial;         // [batch, S]
  void* emission;        // [batch, T, S]
  void* transition;      // zero-filled by the caller
  TransitionGradient kind;
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_log_normalizer_backward_group, (const HmmTask&))

}  // namespace sumprod
