// The length of a sequence, as kernels read it.
#pragma once

#include "core/hmm_problem.h"
#include "gpu/device.h"

namespace sumprod::gpu {

// The caller has checked lengths; here nothing may be read outside of the arrays even so.
SUMPROD_DEVICE int length_on_device(const HmmProblem& p, int64_t sequence) {
  if (p.lengths == nullptr) return int(p.steps);
  const int64_t n = p.lengths[sequence];
  return int(n < 0 ? 0 : (n > p.steps ? p.steps : n));
}

}  // namespace sumprod::gpu
