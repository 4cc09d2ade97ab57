// The HMM operators on GPUs: outputs and scratch memory, and which kernels run.
#include <tuple>

#include "ops/gpu_call.h"
#include "ops/hmm_general.h"
#include "ops/hmm_paths_gpu.h"
#include "ops/hmm_posteriors_gpu.h"
#include "ops/hmm_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

// Kernels read the entries of a matrix row side by side. A homogeneous matrix that lies otherwise is copied, which
// costs nothing beside the recursion.
Tensor rows_contiguous(const Tensor& transition) {
  if (transition.dim() != 4) return transition;  // HmmInputs says what is wrong
  const bool one_per_sequence = transition.size(0) == 1 || transition.stride(0) != 0;
  if (transition.size(1) != 1 || transition.stride(3) == 1 || !one_per_sequence) return transition;
  return torch::stable::contiguous(transition);
}

struct HmmGpuCall {
  HmmGpuCall(const char* op, const Tensor& initial, const Tensor& transition, const Tensor& emission,
             const std::optional<Tensor>& lengths)
      : call(emission), in(op, initial, rows_contiguous(transition), emission, lengths, HmmMemory::device) {}

  // Runs the general kernels for the sequences that `left` marks, or for all.
  template <class Outputs>
  void general(int64_t (*launch)(const HmmGeneral&, const Outputs&, const gpu::Stream&), const Outputs& outputs,
               const std::optional<Tensor>& left) const {
    if (in.problem.batch == 0) return;
    HmmGeneral task = {in.problem, left.has_value() ? left->const_data_ptr<uint8_t>() : nullptr, nullptr};
    Tensor scratch = call.scratch(launch(task, outputs, call.stream()));
    task.scratch = scratch.mutable_data_ptr();
    launch(task, outputs, call.stream());
  }

  GpuCall call;
  HmmInputs in;
};

Tensor hmm_log_normalizer(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                          std::optional<Tensor> lengths) {
  const HmmGpuCall call("hmm_log_normalizer", initial, transition, emission, lengths);
  Tensor result = call.in.empty({call.in.problem.batch});
  const HmmLogNormalizerOutputs outputs{result.mutable_data_ptr()};
  call.general(hmm_general_log_normalizer_cuda, outputs, fast_log_normalizer(call.call, call.in.problem, outputs));
  return result;
}

// The initial gradient in the shape of `initial`: summed over the batch where that is shared.
Tensor like_initial(const HmmGpuCall& call, const Tensor& per_sequence) {
  const HmmProblem& problem = call.in.problem;
  if (call.in.initial.size(0) == problem.batch) return per_sequence;
  Tensor out = call.in.empty({1, problem.states});
  hmm_add_batch_cuda(per_sequence.const_data_ptr(), problem.batch, problem.states, out.mutable_data_ptr(),
                     problem.is_double, call.call.stream());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> hmm_log_normalizer_backward(const Tensor& grad, const Tensor& initial,
                                                               const Tensor& transition, const Tensor& emission,
                                                               std::optional<Tensor> lengths) {
  const HmmGpuCall call("hmm_log_normalizer_backward", initial, transition, emission, lengths);
  const HmmInputs& in = call.in;
  const HmmProblem& problem = in.problem;
  const Tensor upstream = checked_upstream(in, grad);
  const TransitionGradient kind = in.transition_gradient();
  const int64_t square = problem.states * problem.states, matrices = in.transition.size(1);
  Tensor grad_initial = in.empty({problem.batch, problem.states});
  Tensor grad_emission = in.empty({problem.batch, problem.steps, problem.states});
  Tensor grad_transition = in.empty({in.transition.size(0), matrices, problem.states, problem.states});

  const bool pairs = problem.batch > 0 && problem.steps > 1;
  if (!pairs) torch::stable::fill_(grad_transition, 0.0);
  const bool shared = kind == TransitionGradient::shared;
  const bool partial = pairs && (shared || kind == TransitionGradient::shared_steps);
  // The general kernels fill some units of partial sums, the fast ones one more.
  const int64_t units = shared ? hmm_general_gradient_units(problem) : 1;
  Tensor sums = call.call.scratch(partial ? (units + 1) * matrices * square * int64_t(sizeof(double)) : 0);
  const HmmLogNormalizerGradients outputs{upstream.const_data_ptr(), grad_initial.mutable_data_ptr(),
                                          grad_emission.mutable_data_ptr(),
                                          partial ? sums.mutable_data_ptr() : grad_transition.mutable_data_ptr(), kind};
  std::optional<Tensor> left;
  if (shared || kind == TransitionGradient::own) {
    double* counts = partial ? static_cast<double*>(sums.mutable_data_ptr()) + units * square : nullptr;
    left = fast_gradient(call.call, problem, outputs, counts);
  }
  call.general(hmm_general_gradient_cuda, outputs, left);
  if (partial) {
    hmm_add_partial_sums_cuda(static_cast<const double*>(sums.const_data_ptr()), units + left.has_value(),
                              matrices * square, grad_transition.mutable_data_ptr(), problem.is_double,
                              call.call.stream());
  }
  return {like_initial(call, grad_initial), grad_transition, grad_emission};
}

Tensor hmm_filter(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                  std::optional<Tensor> lengths) {
  const HmmGpuCall call("hmm_filter", initial, transition, emission, lengths);
  const HmmProblem& problem = call.in.problem;
  Tensor filtered = call.in.empty({problem.batch, problem.steps, problem.states});
  const HmmFilterOutputs outputs{filtered.mutable_data_ptr()};
  call.general(hmm_general_filter_cuda, outputs, fast_filter(call.call, problem, outputs));
  return filtered;
}

Tensor hmm_marginals(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                     std::optional<Tensor> lengths) {
  const HmmGpuCall call("hmm_marginals", initial, transition, emission, lengths);
  const HmmProblem& problem = call.in.problem;
  Tensor marginals = call.in.empty({problem.batch, problem.steps, problem.states});
  const HmmMarginalsOutputs outputs{marginals.mutable_data_ptr()};
  call.general(hmm_general_marginals_cuda, outputs, fast_marginals(call.call, problem, outputs));
  return marginals;
}

Tensor hmm_pairwise(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                    std::optional<Tensor> lengths) {
  const HmmGpuCall call("hmm_pairwise", initial, transition, emission, lengths);
  const HmmProblem& problem = call.in.problem;
  const int64_t pairs = problem.steps > 1 ? problem.steps - 1 : 0;
  Tensor pairwise = call.in.empty({problem.batch, pairs, problem.states, problem.states});
  if (pairs == 0) return pairwise;
  const HmmPairwiseOutputs outputs{pairwise.mutable_data_ptr()};
  call.general(hmm_general_pairwise_cuda, outputs, fast_pairwise(call.call, problem, outputs));
  return pairwise;
}

std::tuple<Tensor, Tensor, Tensor> hmm_viterbi(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                                               std::optional<Tensor> lengths) {
  const HmmGpuCall call("hmm_viterbi", initial, transition, emission, lengths);
  const HmmProblem& problem = call.in.problem;
  Tensor path = call.in.empty_long({problem.batch, problem.steps});
  Tensor score = call.in.empty({problem.batch});
  Tensor dead = call.in.empty_long({problem.batch});
  const HmmViterbiOutputs outputs{path.mutable_data_ptr<int64_t>(), score.mutable_data_ptr(),
                                  dead.mutable_data_ptr<int64_t>()};
  call.general(hmm_general_viterbi_cuda, outputs, fast_viterbi(call.call, problem, outputs));
  return {path, score, dead};
}

std::tuple<Tensor, Tensor> hmm_sample(const Tensor& initial, const Tensor& transition, const Tensor& emission,
                                      std::optional<Tensor> lengths, const Tensor& uniforms) {
  const HmmGpuCall call("hmm_sample", initial, transition, emission, lengths);
  const HmmProblem& problem = call.in.problem;
  const Tensor numbers = checked_uniforms(call.in, uniforms);
  const int64_t draws = numbers.size(0);
  Tensor paths = call.in.empty_long({draws, problem.batch, problem.steps});
  Tensor dead = call.in.empty_long({problem.batch});
  const HmmSampleOutputs outputs{numbers.const_data_ptr(), draws, paths.mutable_data_ptr<int64_t>(),
                                 dead.mutable_data_ptr<int64_t>()};
  call.general(hmm_general_sample_cuda, outputs, fast_sample(call.call, problem, outputs));
  return {paths, dead};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) {
  m.impl("hmm_log_normalizer", TORCH_BOX(&hmm_log_normalizer));
  m.impl("hmm_log_normalizer_backward", TORCH_BOX(&hmm_log_normalizer_backward));
  m.impl("hmm_filter", TORCH_BOX(&hmm_filter));
  m.impl("hmm_marginals", TORCH_BOX(&hmm_marginals));
  m.impl("hmm_pairwise", TORCH_BOX(&hmm_pairwise));
  m.impl("hmm_viterbi", TORCH_BOX(&hmm_viterbi));
  m.impl("hmm_sample", TORCH_BOX(&hmm_sample));
}

}  // namespace sumprod
