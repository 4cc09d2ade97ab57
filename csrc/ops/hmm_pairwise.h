// Pairwise smoothing: log p(z_t = i, z_t+1 = j | x) (Rabiner 1989, equation 37).
//
//   pairwise[b,t,i,j] = log a_t[i] + transition[i][j] + emission[t+1][j] + log b_t+1[j] - log Z
//
// Impossible sequences give -inf everywhere, sequences with NaN give NaN; steps at and past
// length - 1 are -inf (filled by the caller).
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

struct HmmPairwiseOutputs {
  void* pairwise;  // [batch, steps - 1, states, states]
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_pairwise_group, (const HmmTask&))

}  // namespace sumprod
