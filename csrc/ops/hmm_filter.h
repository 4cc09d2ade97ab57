// Filtering: log p(z_t | x_0 .. x_t), normalised at every step (Rabiner 1989, section III.A).
//
//   filtered[b,t,s] = log a_t[s] - log sum_s' a_t[s'],   a_t the forward message
//
// After the support of a sequence has become empty its rows are -inf; from a NaN on they are NaN.
// Rows at and past a sequence's length are -inf (filled by the caller).
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

struct HmmFilterOutputs {
  void* filtered;  // [batch, steps, states]
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_filter_group, (const HmmTask&))

}  // namespace sumprod
