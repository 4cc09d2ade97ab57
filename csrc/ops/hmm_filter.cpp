#include "ops/hmm_filter.h"

#include <limits>

#include "ops/hmm_shared.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

Tensor hmm_filter(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                  std::optional<Tensor> lengths) {
  const HmmInputs in("hmm_filter", initial, transition, emission, lengths);
  const HmmProblem& problem = in.problem;
  Tensor filtered = in.empty({problem.batch, problem.steps, problem.states});
  fill_padding(problem, filtered, problem.steps, problem.states, 0, -std::numeric_limits<double>::infinity());
  const HmmFilterOutputs outputs{filtered.mutable_data_ptr()};
  HmmRun run{SUMPROD_KERNEL(hmm_filter_group), &outputs};
  run_hmm(problem, run);
  return filtered;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("hmm_filter(Tensor initial, Tensor transition, Tensor emission, Tensor? lengths) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("hmm_filter", TORCH_BOX(&hmm_filter)); }

}  // namespace sumprod
