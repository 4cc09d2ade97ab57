#include "ops/hmm_tensors.h"

#include <algorithm>
#include <string>
#include <vector>

#include "ops/huge_pages.h"
#include "ops/parallel.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

// Stride of dim d, 0 where its size 1 stands for any size.
int64_t broadcast_stride(const Tensor& t, int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); }

void check_shapes(const char* op, const Tensor& initial, const Tensor& transition, const Tensor& emission) {
  STD_TORCH_CHECK(emission.dim() == 3 && emission.size(2) > 0, "sumprod::", op,
                  ": emission must be [B, T, S] with S > 0, got ", shape_of(emission));
  const int64_t batch = emission.size(0), steps = emission.size(1), states = emission.size(2);
  STD_TORCH_CHECK(initial.dim() == 2 && (initial.size(0) == batch || initial.size(0) == 1) && initial.size(1) == states,
                  "sumprod::", op, ": initial must be [B or 1, S] with [B, T, S] = ", shape_of(emission), ", got ",
                  shape_of(initial));
  const bool transition_ok = transition.dim() == 4 && (transition.size(0) == batch || transition.size(0) == 1) &&
                             (transition.size(1) == std::max<int64_t>(steps - 1, 0) || transition.size(1) == 1) &&
                             transition.size(2) == states && transition.size(3) == states;
  STD_TORCH_CHECK(transition_ok, "sumprod::", op,
                  ": transition must be [B or 1, T-1 or 1, S, S] with [B, T, S] = ", shape_of(emission), ", got ",
                  shape_of(transition));
}

void check_types(const char* op, const Tensor& initial, const Tensor& transition, const Tensor& emission) {
  const ScalarType dtype = emission.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "sumprod::", op,
                  ": potentials must be float32 or float64");
  STD_TORCH_CHECK(initial.scalar_type() == dtype && transition.scalar_type() == dtype, "sumprod::", op,
                  ": initial, transition and emission must have one dtype");
}

void check_lengths(const char* op, const Tensor& lengths, int64_t batch, int64_t steps, HmmMemory memory) {
  STD_TORCH_CHECK(lengths.scalar_type() == ScalarType::Long && lengths.dim() == 1 && lengths.size(0) == batch,
                  "sumprod::", op, ": lengths must be int64 of shape [", batch, "], got shape ", shape_of(lengths));
  if (memory == HmmMemory::device) return;
  const int64_t* data = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(data[b] >= 0 && data[b] <= steps, "sumprod::", op, ": lengths[", b, "] = ", data[b],
                    " is outside [0, ", steps, "]");
  }
}

}  // namespace

HmmInputs::HmmInputs(const char* op, const Tensor& initial_in, const Tensor& transition_in, const Tensor& emission_in,
                     const std::optional<Tensor>& lengths_in, HmmMemory memory_in)
    : initial(initial_in), transition(transition_in), emission(emission_in), lengths(lengths_in), memory(memory_in) {
  check_shapes(op, initial, transition, emission);
  STD_TORCH_CHECK(emission.size(1) < INT32_MAX / 4, "sumprod::", op, ": at most 2^29 steps, got ", emission.size(1));
  check_types(op, initial, transition, emission);
  if (lengths.has_value()) {
    if (!lengths->is_contiguous()) lengths = torch::stable::contiguous(*lengths);
    check_lengths(op, *lengths, emission.size(0), emission.size(1), memory);
  }
  problem.batch = emission.size(0);
  problem.steps = emission.size(1);
  problem.states = emission.size(2);
  problem.initial = initial.const_data_ptr();
  problem.initial_batch = broadcast_stride(initial, 0);
  problem.initial_state = initial.stride(1);
  problem.transition = transition.const_data_ptr();
  problem.transition_batch = broadcast_stride(transition, 0);
  problem.transition_time = broadcast_stride(transition, 1);
  problem.transition_from = transition.stride(2);
  problem.transition_to = transition.stride(3);
  problem.emission = emission.const_data_ptr();
  problem.emission_batch = emission.stride(0);
  problem.emission_time = emission.stride(1);
  problem.emission_state = emission.stride(2);
  problem.lengths = lengths.has_value() ? lengths->const_data_ptr<int64_t>() : nullptr;
  problem.is_double = emission.scalar_type() == ScalarType::Double;
}

Tensor HmmInputs::empty(std::initializer_list<int64_t> sizes) const {
  Tensor result = torch::stable::new_empty(emission, {sizes.begin(), sizes.size()});
  if (memory == HmmMemory::host) {
    prefer_huge_pages(result.mutable_data_ptr(), result.numel() * (problem.is_double ? 8 : 4));
  }
  return result;
}

Tensor HmmInputs::empty_long(std::initializer_list<int64_t> sizes) const {
  Tensor result = torch::stable::new_empty(emission, {sizes.begin(), sizes.size()}, ScalarType::Long);
  if (memory == HmmMemory::host) prefer_huge_pages(result.mutable_data_ptr(), result.numel() * 8);
  return result;
}

Tensor HmmInputs::zeros_double(std::initializer_list<int64_t> sizes) const {
  return torch::stable::new_zeros(emission, {sizes.begin(), sizes.size()}, ScalarType::Double);
}

// By sizes, not strides: a transition expanded over the batch still has a gradient per sequence.
TransitionGradient HmmInputs::transition_gradient() const {
  const bool steps = transition.size(1) > 1;
  if (transition.size(0) > 1) return steps ? TransitionGradient::own_steps : TransitionGradient::own;
  if (!steps) return TransitionGradient::shared;
  return problem.batch == 1 ? TransitionGradient::own_steps : TransitionGradient::shared_steps;
}

Tensor checked_upstream(const HmmInputs& in, const Tensor& grad) {
  const bool fits = grad.dim() == 1 && grad.size(0) == in.problem.batch;
  STD_TORCH_CHECK(fits && grad.scalar_type() == in.emission.scalar_type(),
                  "sumprod::hmm_log_normalizer_backward: grad must be [B] in the emission's dtype");
  return grad.is_contiguous() ? grad : torch::stable::contiguous(grad);
}

Tensor checked_uniforms(const HmmInputs& in, const Tensor& uniforms) {
  const bool fits = uniforms.dim() == 3 && uniforms.size(1) == in.problem.batch && uniforms.size(2) == in.problem.steps;
  STD_TORCH_CHECK(fits && uniforms.scalar_type() == in.emission.scalar_type(),
                  "sumprod::hmm_sample: uniforms must be [draws, B, T] in the emission's dtype");
  return uniforms.is_contiguous() ? uniforms : torch::stable::contiguous(uniforms);
}

namespace {

template <class Real>
void fill_rows(const HmmProblem& problem, Real* output, int64_t rows, int64_t row_size, int64_t shorten, Real value) {
  parallel_run(problem.batch, worker_count(problem.batch), [&](int64_t b, int) {
    const int64_t first = std::clamp<int64_t>(problem.lengths[b] - shorten, 0, rows);
    std::fill(output + (b * rows + first) * row_size, output + (b + 1) * rows * row_size, value);
  });
}

}  // namespace

void fill_padding(const HmmProblem& problem, Tensor& output, int64_t rows, int64_t row_size, int64_t shorten,
                  double value) {
  if (problem.lengths == nullptr) return;
  if (problem.is_double) {
    fill_rows(problem, output.mutable_data_ptr<double>(), rows, row_size, shorten, value);
  } else {
    fill_rows(problem, output.mutable_data_ptr<float>(), rows, row_size, shorten, static_cast<float>(value));
  }
}

void fill_empty(const HmmProblem& problem, Tensor& output, int64_t row_size, double value) {
  for (int64_t b = 0; b < problem.batch; ++b) {
    if (length_of(problem, b) > 0) continue;
    for (int64_t k = b * row_size; k < (b + 1) * row_size; ++k) {
      if (problem.is_double) {
        output.mutable_data_ptr<double>()[k] = value;
      } else {
        output.mutable_data_ptr<float>()[k] = static_cast<float>(value);
      }
    }
  }
}

void fill_padding_long(const HmmProblem& problem, int64_t* output, int64_t draws, int64_t value) {
  if (problem.lengths == nullptr) return;
  for (int64_t n = 0; n < draws; ++n) {
    for (int64_t b = 0; b < problem.batch; ++b) {
      int64_t* row = output + (n * problem.batch + b) * problem.steps;
      std::fill(row + problem.lengths[b], row + problem.steps, value);
    }
  }
}

}  // namespace sumprod
