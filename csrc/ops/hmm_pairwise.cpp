#include "ops/hmm_pairwise.h"

#include <algorithm>
#include <limits>

#include "ops/hmm_shared.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

Tensor hmm_pairwise(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                    std::optional<Tensor> lengths) {
  const HmmInputs in("hmm_pairwise", initial, transition, emission, lengths);
  const HmmProblem& problem = in.problem;
  const int64_t pairs = std::max<int64_t>(problem.steps - 1, 0), states = problem.states;
  Tensor pairwise = in.empty({problem.batch, pairs, states, states});
  fill_padding(problem, pairwise, pairs, states * states, 1, -std::numeric_limits<double>::infinity());
  const HmmPairwiseOutputs outputs{pairwise.mutable_data_ptr()};
  HmmRun run{SUMPROD_KERNEL(hmm_pairwise_group), &outputs};
  run.backward = true;
  run.by_state = true;
  if (pairs > 0) run_hmm(problem, run);
  return pairwise;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("hmm_pairwise(Tensor initial, Tensor transition, Tensor emission, Tensor? lengths) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("hmm_pairwise", TORCH_BOX(&hmm_pairwise)); }

}  // namespace sumprod
