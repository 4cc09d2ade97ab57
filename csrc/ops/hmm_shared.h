// How the HMM operators run their group kernels: order, groups, tiers, threads.
#pragma once

#include "core/hmm_problem.h"
#include "core/isa.h"

namespace sumprod {

// Prepares the weights of a homogeneous, batch-shared transition for one tier and layout.
// With `storage` null, only returns the bytes needed.
struct HmmPreparation {
  const HmmProblem* problem;
  HmmTier tier;
  HmmLayout layout;
  bool backward;
  void* storage;
  HmmShared* shared;
};
SUMPROD_DECLARE_KERNEL(int64_t, hmm_prepare, (const HmmPreparation&))

using HmmGroupKernel = int64_t (*)(const HmmTask&);

struct HmmRun {
  HmmGroupKernel kernel;
  const void* outputs;
  bool backward = false;          // the kernel uses transposed weights
  bool by_state = false;          // the kernel needs one sequence per group
  bool max_plus = false;          // the kernel works in log space, with tiers of its own
  int64_t max_units = INT64_MAX;  // partial results that the outputs have room for
};

// Runs the kernel over all sequences of positive length. Results do not depend on the number of
// threads, nor, per sequence, on the rest of the batch.
void run_hmm(const HmmProblem& problem, const HmmRun& run);

// Time-varying or per-sequence transitions are prepared inside each group.
bool has_shared_transition(const HmmProblem& problem);

}  // namespace sumprod
