// Exact samples of state paths: forward filtering, backward sampling (Scott 2002).
//
//   z_last ~ a_last,      z_t ~ a_t[i] * A[i][z_t+1]
// Each draw inverts the cumulative weights at uniform * total: the first state whose cumulative
// weight exceeds it. A state of weight zero is never drawn, whatever the uniform in [0, 1).
// The same uniforms give the same paths for any batch layout or thread count.
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

struct HmmSampleOutputs {
  const void* uniforms;  // [draws, batch, steps], the problem's dtype, contiguous
  int64_t draws;
  int64_t* paths;  // [draws, batch, steps]; -1 where there is no state
  int64_t* dead;   // [batch]: first step at which no state is possible, -1 if there is none
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_sample_group, (const HmmTask&))

}  // namespace sumprod
