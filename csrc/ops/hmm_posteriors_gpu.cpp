#include "ops/hmm_posteriors_gpu.h"

#include "gpu/hmm_rows.h"
#include "ops/hmm_recursion_gpu.h"

namespace sumprod {

namespace {

// The passes of one call, and the memory for what they leave.
class Passes {
 public:
  Passes(const GpuCall& call, const HmmProblem& problem)
      : call_(call), left_(call.scratch(problem.batch)), forward_(call.scratch(0)), exponents_(call.scratch(0)) {
    torch::stable::fill_(left_, 0.0);
    recursion_.problem = problem;
    recursion_.forward = true;
    recursion_.forward_predicted = true;
    recursion_.redo = left_.mutable_data_ptr<uint8_t>();
  }

  void run(void* total) {
    recursion_.total = total;
    run_recursion(gpu::run_linear_recursion, recursion_, call_);
  }

  // Keeps forward messages in `memory`, or in memory of our own.
  void keep_forward(void* memory = nullptr) {
    if (memory == nullptr) {
      forward_ = call_.scratch(message_bytes());
      memory = forward_.mutable_data_ptr();
    }
    recursion_.forward_messages = memory;
  }
  void keep_backward(void* memory) {
    recursion_.backward = true;
    recursion_.backward_messages = memory;
  }
  void keep_exponents() {
    const HmmProblem& p = recursion_.problem;
    exponents_ = call_.scratch(p.batch * p.steps * int64_t(sizeof(int32_t)));
    recursion_.forward_exponents = static_cast<int32_t*>(exponents_.mutable_data_ptr());
  }

  int64_t message_bytes() const {
    const HmmProblem& p = recursion_.problem;
    return p.batch * p.steps * p.states * (p.is_double ? 8 : 4);
  }

  gpu::HmmRows rows() const {
    return {recursion_.problem, recursion_.forward_messages, recursion_.backward_messages, recursion_.forward_exponents,
            recursion_.redo};
  }

  const Tensor& left() const { return left_; }

 private:
  const GpuCall& call_;
  Tensor left_, forward_, exponents_;
  gpu::HmmRecursion recursion_ = {};
};

}  // namespace

std::optional<Tensor> fast_log_normalizer(const GpuCall& call, const HmmProblem& problem,
                                          const HmmLogNormalizerOutputs& out) {
  if (!gpu::has_recursion(problem)) return std::nullopt;
  Passes passes(call, problem);
  passes.run(out.log_normalizer);
  return passes.left();
}

// A row of results takes the place of the messages that it is made of.
std::optional<Tensor> fast_filter(const GpuCall& call, const HmmProblem& problem, const HmmFilterOutputs& out) {
  if (!gpu::has_recursion(problem)) return std::nullopt;
  Passes passes(call, problem);
  passes.keep_forward(out.filtered);
  passes.run(nullptr);
  gpu::filter_rows(passes.rows(), out.filtered, call.stream());
  return passes.left();
}

std::optional<Tensor> fast_marginals(const GpuCall& call, const HmmProblem& problem, const HmmMarginalsOutputs& out) {
  if (!gpu::has_recursion(problem)) return std::nullopt;
  Passes passes(call, problem);
  passes.keep_forward();
  passes.keep_backward(out.marginals);
  passes.run(nullptr);
  gpu::marginal_rows(passes.rows(), out.marginals, call.stream());
  return passes.left();
}

std::optional<Tensor> fast_pairwise(const GpuCall& call, const HmmProblem& problem, const HmmPairwiseOutputs& out) {
  if (!gpu::is_resident(problem) || problem.steps < 2) return std::nullopt;
  Passes passes(call, problem);
  Tensor backward = call.scratch(passes.message_bytes());
  Tensor shift = call.scratch(gpu::shift_count(problem) * int64_t(sizeof(double)));
  auto* shift_data = static_cast<double*>(shift.mutable_data_ptr());
  passes.keep_forward();
  passes.keep_backward(backward.mutable_data_ptr());
  passes.keep_exponents();
  passes.run(nullptr);
  gpu::transition_shift(problem, shift_data, call.stream());
  gpu::pairwise_rows(passes.rows(), shift_data, out.pairwise, call.stream());
  return passes.left();
}

std::optional<Tensor> fast_gradient(const GpuCall& call, const HmmProblem& problem,
                                    const HmmLogNormalizerGradients& out, double* shared) {
  if (!gpu::has_recursion(problem)) return std::nullopt;
  Passes passes(call, problem);
  const bool pairs = problem.steps > 1;
  // Counting needs the backward messages after the posteriors have been written.
  Tensor backward = call.scratch(pairs ? passes.message_bytes() : 0);
  passes.keep_forward();
  passes.keep_backward(pairs ? backward.mutable_data_ptr() : out.emission);
  if (pairs) passes.keep_exponents();
  passes.run(nullptr);
  gpu::gradient_rows(passes.rows(), {out.upstream, out.initial, out.emission, pairs}, call.stream());
  if (!pairs) return passes.left();
  Tensor shift = call.scratch(gpu::shift_count(problem) * int64_t(sizeof(double)));
  auto* shift_data = static_cast<double*>(shift.mutable_data_ptr());
  gpu::transition_shift(problem, shift_data, call.stream());
  if (shared == nullptr) {
    gpu::transition_counts_for_each(passes.rows(), shift_data, out.transition, call.stream());
  } else {
    const int64_t square = problem.states * problem.states;
    Tensor partial = call.scratch(gpu::count_units(problem) * square * int64_t(sizeof(double)));
    gpu::transition_counts(passes.rows(), {shift_data, static_cast<double*>(partial.mutable_data_ptr()), shared},
                           call.stream());
  }
  return passes.left();
}

}  // namespace sumprod
