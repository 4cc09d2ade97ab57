// Tensors of the operators of contract.cpp: what is checked, and made, wherever the kernels run.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "ops/contract_compiled.h"

namespace sumprod {

using torch::stable::Tensor;

// Operands as a plan wants them, and how they lie in memory.
OperandLayouts checked_layouts(const CompiledPlan& plan, const std::vector<Tensor>& operands);

Tensor empty_result(const PlanProgram& program, int32_t slot, const Tensor& like);

// A new contiguous tensor of the shape, dtype and device of another.
Tensor new_gradient(const Tensor& like, bool is_zero);

void check_result_gradients(const PlanProgram& program, const std::vector<Tensor>& grads, const Tensor& factor);

// What a draw gives and takes.
struct DrawTensors {
  // Checks the uniforms.
  DrawTensors(const PlanProgram& program, const Tensor& factor, const std::optional<Tensor>& uniforms, bool maximise);

  std::vector<Tensor> values;                // of each variable, in the order of the steps that sum them out
  std::vector<int32_t> variables;            // their dims
  std::vector<std::vector<int32_t>> plates;  // the dims of each one's values
  std::vector<int64_t> uniform_at;           // of each step, the number of its first uniform
};

}  // namespace sumprod
