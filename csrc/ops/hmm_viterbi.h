// The most probable state path (Viterbi 1967; Rabiner 1989, section III.B).
//
//   d_t[j] = emission[t][j] + max_i (d_{t-1}[i] + A[i][j])
// Messages d are kept instead of back-pointers, rescaled every step so that rounding does not grow
// with T; the argmax is recomputed along the path, for all lanes together, from the same sums, so
// ties go to the lowest state as with stored pointers. When the messages of all steps would take
// more than 32 MB per thread, every sqrt(T)-th is kept and segments are computed again.
//
// A float message rounds to its distance from the best state. Where a state falls far behind (2^17)
// and could still win by catching up slowly, the sequence is run again in double.
//
// The score is accumulated in double. A sequence with NaN or +inf has score NaN and path -1.
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

struct HmmViterbiOutputs {
  int64_t* path;  // [batch, steps]; -1 where there is no state
  void* score;    // [batch]
  int64_t* dead;  // [batch]: first step at which no state is possible, -1 if there is none
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_viterbi_group, (const HmmTask&))

}  // namespace sumprod
