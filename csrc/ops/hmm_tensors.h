// From torch tensors to an HmmProblem: checks, promotion of strides, allocation of outputs.
#pragma once

#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "core/hmm_problem.h"
#include "ops/hmm_log_normalizer.h"

namespace sumprod {

using torch::stable::Tensor;

// Where the kernels run. On a device the values of lengths are not looked at here.
enum class HmmMemory { host, device };

// Checked arguments; keeps the tensors that `problem` points into alive.
struct HmmInputs {
  HmmInputs(const char* op, const Tensor& initial, const Tensor& transition, const Tensor& emission,
            const std::optional<Tensor>& lengths, HmmMemory memory = HmmMemory::host);

  Tensor initial, transition, emission;
  std::optional<Tensor> lengths;
  HmmProblem problem;
  HmmMemory memory;

  // A new tensor on the emission's device, in its dtype unless told otherwise.
  Tensor empty(std::initializer_list<int64_t> sizes) const;
  Tensor empty_long(std::initializer_list<int64_t> sizes) const;
  Tensor zeros_double(std::initializer_list<int64_t> sizes) const;

  // How the gradient with respect to the transition is laid out.
  TransitionGradient transition_gradient() const;
};

// The incoming gradient of hmm_log_normalizer, and the uniforms of hmm_sample: checked, and contiguous.
Tensor checked_upstream(const HmmInputs& in, const Tensor& grad);
Tensor checked_uniforms(const HmmInputs& in, const Tensor& uniforms);

// Writes `value` into rows [length - shorten, rows) of each sequence of a contiguous
// [batch, rows, row_size] tensor in the problem's dtype.
void fill_padding(const HmmProblem& problem, Tensor& output, int64_t rows, int64_t row_size, int64_t shorten,
                  double value);

// Writes `value` for the sequences without steps, which no kernel visits, of a contiguous
// [batch, row_size] tensor in the problem's dtype.
void fill_empty(const HmmProblem& problem, Tensor& output, int64_t row_size, double value);

// Same for int64 tensors [draws, batch, steps].
void fill_padding_long(const HmmProblem& problem, int64_t* output, int64_t draws, int64_t value);

}  // namespace sumprod
