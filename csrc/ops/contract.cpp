// Contraction of a plated factor graph by a plan, in log space.
//
//   contract(factors, plan, max_plus) -> results
//     result = log sum over variables of exp( sum over factors and plate slices of the factor ),
//     or the largest such sum; one tensor per connected component of the graph. Factors are float32 or
//     float64, with the plan's dims in order, any strides. -inf is an impossible assignment and gives
//     -inf where nothing else is possible; NaN and +inf give NaN in their slice.
//   contract_backward(grads, factors, plan) -> gradients of the factors (their posterior marginals, times
//     the gradient of the result); zero where the total is -inf.
//   contract_draw(factors, plan, uniforms, maximise) -> results, values
//     all variables drawn together from their posterior, or set to the most probable assignment. One int64
//     tensor per variable, in the order of the steps that sum them out, over the plates of the step that sums it out.
//     One uniform in [0, 1) is used per step that sums and per plate slice of its output; of equally probable values
//     the step takes the lowest. Where the total is -inf or NaN, values are arbitrary.
//
// Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "core/contraction.h"
#include "ops/contract_program.h"
#include "ops/parallel.h"
#include "ops/workspace.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

std::vector<int64_t> strides_of(const Tensor& tensor) {
  std::vector<int64_t> strides;
  for (int64_t d = 0; d < tensor.dim(); ++d) strides.push_back(tensor.stride(d));
  return strides;
}

SlotTensor view_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.scalar_type() == ScalarType::Double, strides_of(tensor)};
}

SlotTensor view_of_new(Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.scalar_type() == ScalarType::Double, strides_of(tensor)};
}

void check_shape(const PlanProgram& program, int32_t slot, const Tensor& tensor, const char* what) {
  const std::vector<int64_t> shape = program.shape_of(slot);
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; same && d < shape.size(); ++d) same = tensor.size(static_cast<int64_t>(d)) == shape[d];
  STD_TORCH_CHECK(same, "sumprod::contract: ", what, " ", slot, " does not have the shape that the plan says");
}

void check_factors(const PlanProgram& program, const std::vector<Tensor>& factors) {
  STD_TORCH_CHECK(factors.size() == program.factors.size() && !factors.empty(), "sumprod::contract: the plan is for ",
                  program.factors.size(), " factors, got ", factors.size());
  const ScalarType dtype = factors.front().scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "sumprod::contract: factors must be float32 or float64");
  for (size_t i = 0; i < factors.size(); ++i) {
    STD_TORCH_CHECK(factors[i].scalar_type() == dtype, "sumprod::contract: factors must have one dtype");
    check_shape(program, static_cast<int32_t>(i), factors[i], "factor");
  }
}

Tensor empty_for(const PlanProgram& program, int32_t slot, const Tensor& like) {
  const std::vector<int64_t> shape = program.shape_of(slot);
  return torch::stable::new_empty(like, {shape.data(), shape.size()});
}

// Row-major strides of a slot's dims.
std::vector<int64_t> contiguous_strides(const PlanProgram& program, int32_t slot) {
  const std::vector<int64_t> shape = program.shape_of(slot);
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

// One component: its phases, the numbers that go between them, and the tensors at its ends.
class ComponentRun {
 public:
  ComponentRun(const PlanProgram& program, const Component& component, const std::vector<Tensor>& factors)
      : program_(program), component_(component), factors_(factors) {
    if (component.lane >= 0) {
      std::vector<int32_t> results;
      if (component.result_has_lane) results.push_back(component.result);
      inner_ = std::make_unique<Phase>(program, component.lane_steps, results, component.lane);
    }
    if (!component.result_has_lane) {
      outer_ = std::make_unique<Phase>(program, component.rest_steps, std::vector<int32_t>{component.result}, -1);
    }
    if (inner_ != nullptr) partial_.resize(static_cast<size_t>(inner_->tiles() * inner_->phase.partial_row));
    reduced_.resize(inner_ != nullptr ? static_cast<size_t>(inner_->phase.partial_row) : 0);
    reduced_grad_.resize(reduced_.size());
  }

  void forward(Tensor& result, bool max_plus) {
    bind({}, {});
    last().bind_result(component_.result, view_of_new(result), {});
    if (inner_ != nullptr) {
      inner_->phase.max_plus = max_plus;
      run(*inner_, SUMPROD_KERNEL(contract_tiles));
      add_partials();
    }
    if (outer_ != nullptr) {
      outer_->phase.max_plus = max_plus;
      run(*outer_, SUMPROD_KERNEL(contract_tiles));
    }
  }

  void backward(const Tensor& grad, std::vector<Tensor>& factor_grads) {
    bind(factor_grads, {});
    last().bind_result(component_.result, {}, view_of(grad));
    if (outer_ != nullptr) {
      if (inner_ != nullptr) {
        run(*inner_, SUMPROD_KERNEL(contract_tiles));
        add_partials();
      }
      run(*outer_, SUMPROD_KERNEL(contract_backward_tiles));
    }
    if (inner_ != nullptr) {
      inner_->phase.partial_grad = reduced_grad_.data();
      run(*inner_, SUMPROD_KERNEL(contract_backward_tiles));
    }
  }

  // `values` by dim, `uniform` by step.
  void draw(Tensor& result, const std::vector<Phase::Values>& values, const std::vector<const double*>& uniform,
            bool maximise) {
    bind({}, {});
    last().bind_result(component_.result, view_of_new(result), {});
    for (Phase* phase : {inner_.get(), outer_.get()}) {
      if (phase == nullptr) continue;
      phase->phase.max_plus = maximise;
      phase->bind_draws(values, uniform);
    }
    if (outer_ != nullptr) {
      if (inner_ != nullptr) {
        run(*inner_, SUMPROD_KERNEL(contract_tiles));
        add_partials();
      }
      run(*outer_, SUMPROD_KERNEL(contract_draw_tiles));
    }
    if (inner_ != nullptr) run(*inner_, SUMPROD_KERNEL(contract_draw_tiles));
  }

 private:
  Phase& last() { return outer_ != nullptr ? *outer_ : *inner_; }

  void bind(std::vector<Tensor> grads, const SlotTensor& none) {
    for (int32_t slot = 0; slot < static_cast<int32_t>(factors_.size()); ++slot) {
      for (Phase* phase : {inner_.get(), outer_.get()}) {
        if (phase != nullptr && phase->is_input(slot)) {
          phase->bind_input(slot, view_of(factors_[slot]), grads.empty() ? none : view_of_new(grads[slot]));
        }
      }
    }
    if (inner_ == nullptr || outer_ == nullptr) return;
    size_t column = 0;
    for (int32_t slot : inner_->reduced()) {
      const std::vector<int64_t> strides = contiguous_strides(program_, slot);
      // Slices come before elements in a row of partial sums, as plates do in no dims' order: map both.
      outer_->bind_input(slot, {&reduced_[column], true, partial_strides(slot)},
                         {&reduced_grad_[column], true, partial_strides(slot)});
      int64_t elements = 1;
      for (int64_t size : program_.shape_of(slot)) elements *= size;
      column += static_cast<size_t>(elements);
    }
  }

  // Strides of a slot in a row of partial sums: plates first, then variables, each in order.
  std::vector<int64_t> partial_strides(int32_t slot) const {
    const std::vector<int32_t>& dims = program_.dims_of(slot);
    std::vector<int64_t> strides(dims.size());
    int64_t stride = 1;
    for (const bool plates : {false, true}) {
      for (size_t d = dims.size(); d-- > 0;) {
        if (program_.is_plate[dims[d]] != plates) continue;
        strides[d] = stride;
        stride *= program_.sizes[dims[d]];
      }
    }
    return strides;
  }

  void add_partials() {
    std::fill(reduced_.begin(), reduced_.end(), 0.0);
    // In the order of the tiles: the sum does not depend on the threads.
    for (size_t i = 0; i < partial_.size(); ++i) reduced_[i % reduced_.size()] += partial_[i];
  }

  void run(Phase& phase, int64_t (*kernel)(const ContractionTask&)) {
    phase.phase.partial = partial_.data();
    phase.phase.is_float = factors_.front().scalar_type() == ScalarType::Float;
    const int64_t tiles = phase.tiles();
    const int workers = worker_count(tiles);
    const Workspace memory(workers, kernel({&phase.phase, 0, 0, nullptr}));
    parallel_run(tiles, workers,
                 [&](int64_t tile, int worker) { kernel({&phase.phase, tile, tile + 1, memory.of(worker)}); });
  }

  const PlanProgram& program_;
  const Component& component_;
  const std::vector<Tensor>& factors_;
  std::unique_ptr<Phase> inner_, outer_;
  std::vector<double> partial_;                 // [tiles, columns]
  std::vector<double> reduced_, reduced_grad_;  // [columns]
};

std::vector<Tensor> contract(std::vector<Tensor> factors, std::vector<int64_t> plan, bool max_plus) {
  const PlanProgram program(plan);
  check_factors(program, factors);
  std::vector<Tensor> results;
  for (const Component& component : components(program)) {
    results.push_back(empty_for(program, component.result, factors.front()));
    ComponentRun(program, component, factors).forward(results.back(), max_plus);
  }
  return results;
}

std::vector<Tensor> contract_backward(std::vector<Tensor> grads, std::vector<Tensor> factors,
                                      std::vector<int64_t> plan) {
  const PlanProgram program(plan);
  check_factors(program, factors);
  STD_TORCH_CHECK(grads.size() == program.results.size(), "sumprod::contract_backward: the plan has ",
                  program.results.size(), " results, got ", grads.size(), " gradients");
  std::vector<Tensor> factor_grads;
  for (size_t i = 0; i < factors.size(); ++i) {
    factor_grads.push_back(empty_for(program, static_cast<int32_t>(i), factors[i]));
  }
  size_t r = 0;
  for (const Component& component : components(program)) {
    check_shape(program, component.result, grads[r], "the gradient of result");
    ComponentRun(program, component, factors).backward(grads[r], factor_grads);
    ++r;
  }
  return factor_grads;
}

// Uniforms that a step uses: one per slice of its output, the lane plate included.
int64_t draws_of(const PlanProgram& program, const PlanStep& step) {
  if (step.variables.empty()) return 0;
  int64_t count = 1;
  for (int32_t dim : step.dims) count *= program.is_plate[dim] ? program.sizes[dim] : 1;
  return count;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> contract_draw(std::vector<Tensor> factors,
                                                                   std::vector<int64_t> plan,
                                                                   std::optional<Tensor> uniforms, bool maximise) {
  const PlanProgram program(plan);
  check_factors(program, factors);
  STD_TORCH_CHECK(maximise != uniforms.has_value(),
                  "sumprod::contract_draw: a draw needs uniforms, the largest needs none");
  std::vector<const double*> uniform(program.steps.size(), nullptr);
  std::vector<Phase::Values> values(program.sizes.size());
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
  for (const Component& component : components(program)) {
    results.push_back(empty_for(program, component.result, factors.front()));
    ComponentRun(program, component, factors).draw(results.back(), values, uniform, maximise);
  }
  return {results, tensors};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("contract(Tensor[] factors, int[] plan, bool max_plus) -> Tensor[]");
  m.def("contract_backward(Tensor[] grads, Tensor[] factors, int[] plan) -> Tensor[]");
  m.def(
      "contract_draw(Tensor[] factors, int[] plan, Tensor? uniforms, bool maximise) "
      "-> (Tensor[] results, Tensor[] values)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, CPU, m) {
  m.impl("contract", TORCH_BOX(&contract));
  m.impl("contract_backward", TORCH_BOX(&contract_backward));
  m.impl("contract_draw", TORCH_BOX(&contract_draw));
}

}  // namespace sumprod
