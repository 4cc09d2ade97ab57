#include "ops/hmm_viterbi.h"

#include <tuple>

#include "ops/hmm_shared.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

std::tuple<Tensor, Tensor, Tensor> hmm_viterbi(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                                               std::optional<Tensor> lengths) {
  const HmmInputs in("hmm_viterbi", initial, transition, emission, lengths);
  const HmmProblem& problem = in.problem;
  Tensor path = in.empty_long({problem.batch, problem.steps});
  Tensor score = in.empty({problem.batch});
  Tensor dead = in.empty_long({problem.batch});
  fill_padding_long(problem, path.mutable_data_ptr<int64_t>(), 1, -1);
  fill_empty(problem, score, 1, 0.0);
  for (int64_t b = 0; b < problem.batch; ++b) {
    if (length_of(problem, b) == 0) dead.mutable_data_ptr<int64_t>()[b] = -1;
  }
  const HmmViterbiOutputs outputs{path.mutable_data_ptr<int64_t>(), score.mutable_data_ptr(),
                                  dead.mutable_data_ptr<int64_t>()};
  HmmRun run{SUMPROD_KERNEL(hmm_viterbi_group), &outputs};
  run.backward = true;
  run.max_plus = true;
  run_hmm(problem, run);
  return {path, score, dead};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def(
      "hmm_viterbi(Tensor initial, Tensor transition, Tensor emission, Tensor? lengths) "
      "-> (Tensor path, Tensor score, Tensor dead)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("hmm_viterbi", TORCH_BOX(&hmm_viterbi)); }

}  // namespace sumprod
