// Contraction of a plated factor graph by a plan, in log space.
//
//   contract(factors, plan, max_plus) -> results
//     result = log sum over variables of exp( sum over factors and plate slices of the factor ),
//     or the largest such sum; one tensor per connected component of the graph. Factors are the plan's
//     operands: float32 or float64, with the plan's dims in order, any strides. They broadcast: size 1 stands
//     for any size, and the first dims may be missing.
//     -inf is an impossible assignment and gives -inf where nothing else is possible; NaN and +inf give NaN
//     in their slice.
//   contract_backward(grads, factors, plan) -> gradients of the factors (their posterior marginals, times
//     the gradient of the result); zero where the total is -inf.
//   contract_draw(factors, plan, uniforms, maximise) -> results, values
//     all variables drawn together from their posterior, or set to the most probable assignment. One int64
//     tensor per variable, in the order of the steps that sum them out, over the plates of the step that sums it out.
//     One uniform in [0, 1) is used per step that sums and per plate slice of its output; of equally probable values
//     the step takes the lowest. Where the total is -inf or NaN, values are arbitrary.
//
// Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/contract_compiled.h"
#include "ops/contract_run.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Operands as a plan wants them, and how they lie in memory.
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

// A new contiguous tensor of the shape and dtype of another. There may be thousands, most of them tiny: through the
// dispatcher, making them would take longer than computing what they hold.
Tensor empty_gradient(const Tensor& like) {
  const auto sizes = like.sizes();
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d]) strides[d] = stride;
  const bool is_float = like.scalar_type() == ScalarType::Float;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      is_float ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64(), aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

std::vector<OperandData> data_of(const std::vector<Tensor>& operands) {
  std::vector<OperandData> out;
  out.reserve(operands.size());
  for (const Tensor& tensor : operands) out.push_back({tensor.const_data_ptr(), nullptr});
  return out;
}

// Calls run(component, ComponentRun) for each component.
template <class F>
void each_component(const CompiledPlan& plan, const CompiledViews& views, const std::vector<OperandData>& operands,
                    F run) {
  for (size_t i = 0; i < plan.components().size(); ++i) {
    ComponentRun component(plan.components()[i], views.components[i], operands, views.layouts.is_double);
    run(i, component);
  }
}

std::vector<Tensor> contract(std::vector<Tensor> factors, std::string encoded, bool max_plus) {
  const auto plan = compiled_plan(encoded);
  const auto views = plan->views(checked_layouts(*plan, factors), false);
  std::vector<Tensor> results;
  each_component(*plan, *views, data_of(factors), [&](size_t i, ComponentRun& run) {
    results.push_back(empty_result(plan->program(), plan->program().results[i], factors.front()));
    run.forward(results.back().mutable_data_ptr(), max_plus);
  });
  return results;
}

std::vector<Tensor> contract_backward(std::vector<Tensor> grads, std::vector<Tensor> factors, std::string encoded) {
  const auto plan = compiled_plan(encoded);
  const PlanProgram& program = plan->program();
  const auto views = plan->views(checked_layouts(*plan, factors), true);
  STD_TORCH_CHECK(grads.size() == program.results.size(), "sumprod::contract_backward: the plan has ",
                  program.results.size(), " results, got ", grads.size(), " gradients");
  std::vector<Tensor> factor_grads;
  std::vector<OperandData> operands = data_of(factors);
  for (size_t i = 0; i < factors.size(); ++i) {
    const auto sizes = factors[i].sizes();
    factor_grads.push_back(views->adds[i] ? torch::stable::new_zeros(factors[i], sizes) : empty_gradient(factors[i]));
    operands[i].grad = factor_grads.back().mutable_data_ptr();
  }
  each_component(*plan, *views, operands, [&](size_t i, ComponentRun& run) {
    const Tensor& grad = grads[i];
    const auto sizes = grad.sizes(), strides = grad.strides();
    const std::vector<int64_t> shape = program.shape_of(program.results[i]);
    STD_TORCH_CHECK(grad.scalar_type() == factors.front().scalar_type() &&
                        std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()),
                    "sumprod::contract_backward: the gradient of result ", i, " is not like the result");
    run.backward(grad.const_data_ptr(), {{strides.begin(), strides.end()}, std::vector<bool>(shape.size(), false)});
  });
  return factor_grads;
}

// Uniforms that a step uses: one per slice of its output, the lane plate included.
int64_t draws_of(const PlanProgram& program, const PlanStep& step) {
  return step.variables.empty() ? 0 : program.volume(program.plates_in(step.dims));
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> contract_draw(std::vector<Tensor> factors, std::string encoded,
                                                                   std::optional<Tensor> uniforms, bool maximise) {
  const auto plan = compiled_plan(encoded);
  const PlanProgram& program = plan->program();
  const auto views = plan->views(checked_layouts(*plan, factors), false);
  STD_TORCH_CHECK(maximise != uniforms.has_value(),
                  "sumprod::contract_draw: a draw needs uniforms, the largest needs none");
  std::vector<const double*> uniform(program.steps.size(), nullptr);
  std::vector<VariableValues> values(program.sizes.size());
  std::vector<Tensor> tensors;
  int64_t used = 0;
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const PlanStep& step = program.steps[i];
    std::vector<int32_t> plates;
    std::vector<int64_t> shape;
    for (int32_t dim : step.dims) {
      if (!program.is_plate[dim]) continue;
      plates.push_back(dim);
      shape.push_back(program.sizes[dim]);
    }
    for (int32_t dim : step.variables) {
      tensors.push_back(torch::stable::new_empty(factors.front(), {shape.data(), shape.size()}, ScalarType::Long));
      values[dim] = {tensors.back().mutable_data_ptr<int64_t>(), plates};
    }
    if (!maximise) uniform[i] = uniforms->const_data_ptr<double>() + used;
    used += draws_of(program, step);
  }
  STD_TORCH_CHECK(maximise || (uniforms->scalar_type() == ScalarType::Double && uniforms->is_contiguous() &&
                               uniforms->numel() == used),
                  "sumprod::contract_draw: uniforms must be a contiguous float64 tensor of ", used, " elements");
  std::vector<Tensor> results;
  each_component(*plan, *views, data_of(factors), [&](size_t i, ComponentRun& run) {
    results.push_back(empty_result(program, program.results[i], factors.front()));
    run.draw(results.back().mutable_data_ptr(), values, uniform, maximise);
  });
  return {results, tensors};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("contract(Tensor[] factors, str plan, bool max_plus) -> Tensor[]");
  m.def("contract_backward(Tensor[] grads, Tensor[] factors, str plan) -> Tensor[]");
  m.def(
      "contract_draw(Tensor[] factors, str plan, Tensor? uniforms, bool maximise) "
      "-> (Tensor[] results, Tensor[] values)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) {
  m.impl("contract", TORCH_BOX(&contract));
  m.impl("contract_backward", TORCH_BOX(&contract_backward));
  m.impl("contract_draw", TORCH_BOX(&contract_draw));
}

}  // namespace sumprod
