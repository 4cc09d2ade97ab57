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
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "ops/contract_compiled.h"
#include "ops/contract_run.h"
#include "ops/contract_tensors.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

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
  check_result_gradients(program, grads, factors.front());
  std::vector<Tensor> factor_grads;
  std::vector<OperandData> operands = data_of(factors);
  for (size_t i = 0; i < factors.size(); ++i) {
    factor_grads.push_back(new_gradient(factors[i], views->adds[i]));
    operands[i].grad = factor_grads.back().mutable_data_ptr();
  }
  each_component(*plan, *views, operands, [&](size_t i, ComponentRun& run) {
    const Tensor& grad = grads[i];
    const auto strides = grad.strides();
    run.backward(grad.const_data_ptr(), {{strides.begin(), strides.end()}, std::vector<bool>(strides.size(), false)});
  });
  return factor_grads;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> contract_draw(std::vector<Tensor> factors, std::string encoded,
                                                                   std::optional<Tensor> uniforms, bool maximise) {
  const auto plan = compiled_plan(encoded);
  const PlanProgram& program = plan->program();
  const auto views = plan->views(checked_layouts(*plan, factors), false);
  DrawTensors draws(program, factors.front(), uniforms, maximise);
  std::vector<const double*> uniform(program.steps.size(), nullptr);
  for (size_t i = 0; i < program.steps.size() && !maximise; ++i) {
    uniform[i] = uniforms->const_data_ptr<double>() + draws.uniform_at[i];
  }
  std::vector<VariableValues> values(program.sizes.size());
  for (size_t v = 0; v < draws.values.size(); ++v) {
    const int32_t dim = draws.variables[v];
    values[dim] = {draws.values[v].mutable_data_ptr<int64_t>(), draws.plates[v]};
  }
  std::vector<Tensor> results;
  each_component(*plan, *views, data_of(factors), [&](size_t i, ComponentRun& run) {
    results.push_back(empty_result(program, program.results[i], factors.front()));
    run.draw(results.back().mutable_data_ptr(), values, uniform, maximise);
  });
  return {results, draws.values};
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
