// Smoothing: log p(z_t | x), by forward-backward (Rabiner 1989, section III.A).
//
//   marginals[b,t,s] = log a_t[s] + log b_t[s] - log sum_s' a_t[s'] b_t[s']
//
// Impossible sequences give -inf everywhere, sequences with NaN give NaN; rows at and past a
// sequence's length are -inf (filled by the caller).
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

struct HmmMarginalsOutputs {
  void* marginals;  // [batch, steps, states]
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_marginals_group, (const HmmTask&))

}  // namespace sumprod
