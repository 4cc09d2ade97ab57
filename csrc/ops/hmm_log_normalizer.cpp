#include "ops/hmm_log_normalizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "ops/hmm_shared.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

Tensor hmm_log_normalizer(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                          std::optional<Tensor> lengths) {
  const HmmInputs in("hmm_log_normalizer", initial, transition, emission, lengths);
  Tensor result = in.empty({in.problem.batch});
  // Sequences without steps have exactly one (empty) path of weight 1.
  fill_empty(in.problem, result, 1, 0.0);
  const HmmLogNormalizerOutputs outputs{result.mutable_data_ptr()};
  HmmRun run{SUMPROD_KERNEL(hmm_log_normalizer_group), &outputs};
  run_hmm(in.problem, run);
  return result;
}

// Partial sums that a shared S x S gradient is gathered in: at most one per group of sequences. A
// function of the sizes alone, so that the order of additions does not depend on threads; bounded
// so that memory stays modest.
int64_t partial_sums(const HmmProblem& problem) {
  constexpr int64_t kBytes = int64_t(64) << 20;
  const int64_t square = problem.states * problem.states * static_cast<int64_t>(sizeof(double));
  constexpr int64_t kSequencesPerGroup = 4;  // the fewest that any instruction set puts together
  const int64_t groups = (problem.batch + kSequencesPerGroup - 1) / kSequencesPerGroup;
  return std::clamp<int64_t>(std::min(kBytes / square, groups), 1, 64);
}

// out[k] = sum over `rows` of partial[row][k], in row order.
template <class Real>
void add_rows(const double* partial, int64_t rows, int64_t size, Real* out) {
  for (int64_t k = 0; k < size; ++k) {
    double total = 0.0;
    for (int64_t r = 0; r < rows; ++r) total += partial[r * size + k];
    out[k] = static_cast<Real>(total);
  }
}

void add_rows(const HmmProblem& problem, const double* partial, int64_t rows, int64_t size, Tensor& out) {
  if (problem.is_double) return add_rows(partial, rows, size, out.mutable_data_ptr<double>());
  add_rows(partial, rows, size, out.mutable_data_ptr<float>());
}

template <class Real>
void add_batch(const Real* rows, int64_t batch, int64_t states, Real* out) {
  for (int64_t s = 0; s < states; ++s) {
    double total = 0.0;
    for (int64_t b = 0; b < batch; ++b) total += static_cast<double>(rows[b * states + s]);
    out[s] = static_cast<Real>(total);
  }
}

// The initial gradient in the shape of `initial`: summed over the batch where that is shared.
Tensor like_initial(const HmmInputs& in, const Tensor& per_sequence) {
  if (in.initial.size(0) == in.problem.batch) return per_sequence;
  Tensor out = in.empty({1, in.problem.states});
  if (in.problem.is_double) {
    add_batch(per_sequence.const_data_ptr<double>(), in.problem.batch, in.problem.states,
              out.mutable_data_ptr<double>());
  } else {
    add_batch(per_sequence.const_data_ptr<float>(), in.problem.batch, in.problem.states, out.mutable_data_ptr<float>());
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> hmm_log_normalizer_backward(const Tensor& grad, const Tensor& initial,
                                                               const Tensor& transition, const Tensor& emission,
                                                               std::optional<Tensor> lengths) {
  const HmmInputs in("hmm_log_normalizer_backward", initial, transition, emission, lengths);
  const HmmProblem& problem = in.problem;
  const Tensor upstream = checked_upstream(in, grad);
  const int64_t square = problem.states * problem.states;
  const TransitionGradient kind = in.transition_gradient();
  const bool partial = kind == TransitionGradient::shared || kind == TransitionGradient::shared_steps;

  Tensor grad_initial = in.empty({problem.batch, problem.states});
  Tensor grad_emission = in.empty({problem.batch, problem.steps, problem.states});
  Tensor grad_transition = in.empty({in.transition.size(0), in.transition.size(1), problem.states, problem.states});
  fill_empty(problem, grad_initial, problem.states, 0.0);
  fill_padding(problem, grad_emission, problem.steps, problem.states, 0, 0.0);
  if (problem.batch == 0) {  // nothing to sum, and the transition may have no elements either
    torch::stable::fill_(grad_transition, 0.0);
    return {like_initial(in, grad_initial), grad_transition, grad_emission};
  }
  const int64_t units = kind == TransitionGradient::shared ? partial_sums(problem) : 1;
  Tensor sums = in.zeros_double({partial ? units : 0, partial ? in.transition.size(1) : 0, square});
  if (!partial) torch::stable::fill_(grad_transition, 0.0);

  const HmmLogNormalizerGradients outputs{upstream.const_data_ptr(), grad_initial.mutable_data_ptr(),
                                          grad_emission.mutable_data_ptr(),
                                          partial ? sums.mutable_data_ptr() : grad_transition.mutable_data_ptr(), kind};
  HmmRun run{SUMPROD_KERNEL(hmm_log_normalizer_backward_group), &outputs};
  run.backward = true;
  run.by_state = kind != TransitionGradient::shared;
  if (partial) run.max_units = units;
  run_hmm(problem, run);
  if (partial) add_rows(problem, sums.const_data_ptr<double>(), units, in.transition.size(1) * square, grad_transition);
  return {like_initial(in, grad_initial), grad_transition, grad_emission};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("hmm_log_normalizer(Tensor initial, Tensor transition, Tensor emission, Tensor? lengths) -> Tensor");
  m.def(
      "hmm_log_normalizer_backward(Tensor grad, Tensor initial, Tensor transition, Tensor emission, Tensor? lengths) "
      "-> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) {
  m.impl("hmm_log_normalizer", TORCH_BOX(&hmm_log_normalizer));
  m.impl("hmm_log_normalizer_backward", TORCH_BOX(&hmm_log_normalizer_backward));
}

}  // namespace sumprod
