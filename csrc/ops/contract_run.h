// Runs a compiled plan on tensors, one connected component at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "ops/contract_compiled.h"
#include "ops/workspace.h"

namespace sumprod {

// A tensor of log-potentials, and where its gradient goes.
struct OperandData {
  const void* data = nullptr;
  void* grad = nullptr;
};

// Values of a variable: a contiguous tensor over the plates of the step that sums it out.
struct VariableValues {
  int64_t* data = nullptr;
  std::vector<int32_t> plates;
};

// A phase with data.
class BoundPhase {
 public:
  BoundPhase(const PhaseProgram& program, const PhaseViews& views, const std::vector<OperandData>& operands,
             bool is_double);
  BoundPhase(const BoundPhase&) = delete;

  // Inputs that are outputs of the other phase, one row of numbers, and where their gradients go.
  void bind_links(const std::vector<int32_t>& slots, const double* values, double* grads);
  void bind_result(int32_t slot, void* data);
  void bind_result_grad(int32_t slot, const void* grad, const SlotLayout& layout);
  // `values` by dim; `uniform` by step, or null to take the largest terms.
  void bind_draws(const std::vector<VariableValues>& values, const std::vector<const double*>& uniform);
  void set_max_plus(bool max_plus) { phase_.max_plus = max_plus; }

  // Both also leave what the lane plate's steps have reduced in reduced().
  void run_forward();
  void run_draw();
  void run_backward(const double* reduced_grad);
  const std::vector<double>& reduced() const { return reduced_; }

 private:
  using Kernel = int64_t (*)(const ContractionTask&);

  void prepare_shared();
  void run_tiles(Kernel kernel);
  void add_partials();
  void write_shared_grads(const Workspace& sums, int groups);
  // Where slices lie in a contiguous tensor over some plates.
  struct SlicePlaces {
    const int64_t* slice;
    int64_t lane_stride;
  };
  SlicePlaces places_in(const std::vector<int32_t>& plates, const std::vector<int32_t>& slices);
  ContractionChoice choice_of(const VariableValues& values, int32_t dim, const std::vector<int32_t>& slices,
                              const std::vector<int32_t>& elements);

  const PhaseProgram& program_;
  const PhaseViews& views_;
  const bool is_double_;
  std::vector<ContractionFactor> factors_;
  ContractionResult result_{};
  ContractionPhase phase_{};
  std::optional<Workspace> shared_memory_;
  std::vector<double> partial_, reduced_;
  std::vector<ContractionDraw> draws_;
  std::deque<std::vector<ContractionChoice>> choices_;
  Lists<int64_t> lists_;
};

// One component: its phases and the numbers that go between them.
class ComponentRun {
 public:
  ComponentRun(const CompiledComponent& compiled, const ComponentViews& views, const std::vector<OperandData>& operands,
               bool is_double);

  void forward(void* result, bool max_plus);
  void backward(const void* result_grad, const SlotLayout& layout);
  void draw(void* result, const std::vector<VariableValues>& values, const std::vector<const double*>& uniform,
            bool maximise);

 private:
  BoundPhase& last() { return outer_ != nullptr ? *outer_ : *inner_; }

  const CompiledComponent& compiled_;
  std::unique_ptr<BoundPhase> inner_, outer_;
  std::vector<double> reduced_grad_;
};

}  // namespace sumprod
