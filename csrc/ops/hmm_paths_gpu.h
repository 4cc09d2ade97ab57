// State paths on a GPU by the fast kernels: the resident recursion keeps its messages, and a walk goes back through
// them. What they cannot be trusted with is left to the general kernels (ops/hmm_general.h).
#pragma once

#include <optional>

#include "ops/gpu_call.h"
#include "ops/hmm_sample.h"
#include "ops/hmm_viterbi.h"

namespace sumprod {

// Each returns which sequences are left, [batch] bytes on the device: 1 where nothing has been written, 0 where all
// results are. Nothing is returned, and nothing done, for problems that these kernels do not serve.
std::optional<Tensor> fast_viterbi(const GpuCall& call, const HmmProblem& problem, const HmmViterbiOutputs& outputs);
std::optional<Tensor> fast_sample(const GpuCall& call, const HmmProblem& problem, const HmmSampleOutputs& outputs);

}  // namespace sumprod
