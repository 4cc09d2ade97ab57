// Sums over state paths, and posteriors, on a GPU by the fast kernels: the resident recursion, and what is made of its
// messages. What they cannot be trusted with is left to the general kernels (ops/hmm_general.h).
#pragma once

#include <optional>

#include "ops/gpu_call.h"
#include "ops/hmm_filter.h"
#include "ops/hmm_log_normalizer.h"
#include "ops/hmm_marginals.h"
#include "ops/hmm_pairwise.h"

namespace sumprod {

// Each returns which sequences are left, [batch] bytes on the device: 1 where the outputs are yet to be written, 0
// where all of them are. Nothing is returned, and nothing done, for problems that these kernels do not serve.
std::optional<Tensor> fast_log_normalizer(const GpuCall& call, const HmmProblem& problem,
                                          const HmmLogNormalizerOutputs& out);
std::optional<Tensor> fast_filter(const GpuCall& call, const HmmProblem& problem, const HmmFilterOutputs& out);
std::optional<Tensor> fast_marginals(const GpuCall& call, const HmmProblem& problem, const HmmMarginalsOutputs& out);
std::optional<Tensor> fast_pairwise(const GpuCall& call, const HmmProblem& problem, const HmmPairwiseOutputs& out);

// `shared` [states, states] receives the gradient of a transition that all sequences share, as far as it comes from
// sequences that are not left; null without pairs of steps, and where each sequence has a gradient of its own.
std::optional<Tensor> fast_gradient(const GpuCall& call, const HmmProblem& problem,
                                    const HmmLogNormalizerGradients& out, double* shared);

}  // namespace sumprod
