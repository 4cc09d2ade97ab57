#include "ops/contract_tensors.h"

#include <algorithm>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace sumprod {

using torch::headeronly::ScalarType;

namespace {

// There may be thousands, most of them tiny: through the dispatcher, making them would take longer than computing
// what they hold.
Tensor empty_gradient(const Tensor& like) {
  const auto sizes = like.sizes();
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d]) strides[d] = stride;
  const bool is_float = like.scalar_type() == ScalarType::Float;
  int32_t device_type = 0, device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      is_float ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64(), device_type, device, &made));
  return Tensor(made);
}

}  // namespace

OperandLayouts checked_layouts(const CompiledPlan& plan, const std::vector<Tensor>& operands) {
  const PlanProgram& program = plan.program();
  STD_TORCH_CHECK(static_cast<int32_t>(operands.size()) == program.operands && !operands.empty(),
                  "sumprod::contract: the plan is for ", program.operands, " tensors, got ", operands.size());
  const ScalarType dtype = operands.front().scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "sumprod::contract: factors must be float32 or float64");
  OperandLayouts layouts;
  layouts.is_double = dtype == ScalarType::Double;
  for (int32_t i = 0; i < program.operands; ++i) {
    const Tensor& tensor = operands[i];
    STD_TORCH_CHECK(tensor.scalar_type() == dtype, "sumprod::contract: factors must have one dtype");
    const std::vector<int32_t>& dims = plan.operand_dims(i);
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    STD_TORCH_CHECK(sizes.size() <= dims.size(), "sumprod::contract: factor ", i, " has ", sizes.size(),
                    " dims, and the plan says ", dims.size());
    const size_t missing = dims.size() - sizes.size();
    layouts.strides.insert(layouts.strides.end(), missing, OperandLayouts::kBroadcast);
    for (size_t d = 0; d < sizes.size(); ++d) {
      const int64_t size = program.sizes[dims[missing + d]];
      STD_TORCH_CHECK(sizes[d] == size || sizes[d] == 1, "sumprod::contract: factor ", i, " has size ", sizes[d],
                      " at dim ", d, ", and the plan says ", size);
      layouts.strides.push_back(sizes[d] == size ? strides[d] : OperandLayouts::kBroadcast);
    }
  }
  return layouts;
}

Tensor empty_result(const PlanProgram& program, int32_t slot, const Tensor& like) {
  const std::vector<int64_t> shape = program.shape_of(slot);
  return torch::stable::new_empty(like, {shape.data(), shape.size()});
}

Tensor new_gradient(const Tensor& like, bool is_zero) {
  return is_zero ? torch::stable::new_zeros(like, like.sizes()) : empty_gradient(like);
}

void check_result_gradients(const PlanProgram& program, const std::vector<Tensor>& grads, const Tensor& factor) {
  STD_TORCH_CHECK(grads.size() == program.results.size(), "sumprod::contract_backward: the plan has ",
                  program.results.size(), " results, got ", grads.size(), " gradients");
  for (size_t i = 0; i < grads.size(); ++i) {
    const auto sizes = grads[i].sizes();
    const std::vector<int64_t> shape = program.shape_of(program.results[i]);
    STD_TORCH_CHECK(grads[i].scalar_type() == factor.scalar_type() &&
                        std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()),
                    "sumprod::contract_backward: the gradient of result ", i, " is not like the result");
  }
}

DrawTensors::DrawTensors(const PlanProgram& program, const Tensor& factor, const std::optional<Tensor>& uniforms,
                         bool maximise) {
  STD_TORCH_CHECK(maximise != uniforms.has_value(),
                  "sumprod::contract_draw: a draw needs uniforms, the largest needs none");
  int64_t used = 0;
  for (const PlanStep& step : program.steps) {
    std::vector<int32_t> own;
    std::vector<int64_t> shape;
    for (int32_t dim : step.dims) {
      if (!program.is_plate[dim]) continue;
      own.push_back(dim);
      shape.push_back(program.sizes[dim]);
    }
    for (int32_t dim : step.variables) {
      values.push_back(torch::stable::new_empty(factor, {shape.data(), shape.size()}, ScalarType::Long));
      variables.push_back(dim);
      plates.push_back(own);
    }
    uniform_at.push_back(used);
    used += program.draws_of(step);
  }
  STD_TORCH_CHECK(maximise || (uniforms->scalar_type() == ScalarType::Double && uniforms->is_contiguous() &&
                               uniforms->numel() == used),
                  "sumprod::contract_draw: uniforms must be a contiguous float64 tensor of ", used, " elements");
}

}  // namespace sumprod
