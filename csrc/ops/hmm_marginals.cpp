#include "ops/hmm_marginals.h"

#include <limits>

#include "ops/hmm_shared.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

Tensor hmm_marginals(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                     std::optional<Tensor> lengths) {
  const HmmInputs in("hmm_marginals", initial, transition, emission, lengths);
  const HmmProblem& problem = in.problem;
  Tensor marginals = in.empty({problem.batch, problem.steps, problem.states});
  fill_padding(problem, marginals, problem.steps, problem.states, 0, -std::numeric_limits<double>::infinity());
  const HmmMarginalsOutputs outputs{marginals.mutable_data_ptr()};
  HmmRun run{SUMPROD_KERNEL(hmm_marginals_group), &outputs};
  run.backward = true;
  run_hmm(problem, run);
  return marginals;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("hmm_marginals(Tensor initial, Tensor transition, Tensor emission, Tensor? lengths) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("hmm_marginals", TORCH_BOX(&hmm_marginals)); }

}  // namespace sumprod
