#include "ops/hmm_sample.h"

#include <tuple>

#include "ops/hmm_shared.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

std::tuple<Tensor, Tensor> hmm_sample(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                                      std::optional<Tensor> lengths, const Tensor& uniforms) {
  const HmmInputs in("hmm_sample", initial, transition, emission, lengths);
  const HmmProblem& problem = in.problem;
  const Tensor numbers = checked_uniforms(in, uniforms);
  const int64_t draws = numbers.size(0);
  Tensor paths = in.empty_long({draws, problem.batch, problem.steps});
  Tensor dead = in.empty_long({problem.batch});
  torch::stable::fill_(paths, -1.0);
  torch::stable::fill_(dead, -1.0);
  const HmmSampleOutputs outputs{numbers.const_data_ptr(), draws, paths.mutable_data_ptr<int64_t>(),
                                 dead.mutable_data_ptr<int64_t>()};
  HmmRun run{SUMPROD_KERNEL(hmm_sample_group), &outputs};
  run.backward = true;
  run_hmm(problem, run);
  return {paths, dead};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def(
      "hmm_sample(Tensor initial, Tensor transition, Tensor emission, Tensor? lengths, Tensor uniforms) "
      "-> (Tensor path, Tensor dead)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("hmm_sample", TORCH_BOX(&hmm_sample)); }

}  // namespace sumprod
