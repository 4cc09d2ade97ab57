// Turns a contraction plan and tensors into what the kernels of `contract` read.
//
// A plan arrives as one list of numbers:
//   dims, sizes..., is plate...
//   factors, for each: count, dims... (those of the tensor, in order)
//   steps, for each: inputs, slots..., variables, dims..., plates, dims..., count, dims... (of the output)
//   results, slots...
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "core/contraction.h"

namespace sumprod {

using torch::stable::Tensor;

struct PlanStep {
  std::vector<int32_t> inputs;
  std::vector<int32_t> variables, plates, dims;
};

struct PlanProgram {
  explicit PlanProgram(const std::vector<int64_t>& encoded);

  const std::vector<int32_t>& dims_of(int32_t slot) const {
    const auto count = static_cast<int32_t>(factors.size());
    return slot < count ? factors[slot] : steps[slot - count].dims;
  }
  std::vector<int64_t> shape_of(int32_t slot) const;

  std::vector<int64_t> sizes;
  std::vector<bool> is_plate;
  std::vector<std::vector<int32_t>> factors;
  std::vector<PlanStep> steps;
  std::vector<int32_t> results;
};

// Where a slot's log-values are: one stride per dim of the slot.
struct SlotTensor {
  void* data = nullptr;
  bool is_double = false;
  std::vector<int64_t> strides;
};

// The steps of one connected component that have the lane plate, or those that have not.
class Phase {
 public:
  // `steps` are numbers of steps; `lane` is the lane plate or -1. The results of the phase are the slots
  // in `results`.
  Phase(const PlanProgram& program, const std::vector<int32_t>& steps, const std::vector<int32_t>& results,
        int32_t lane);
  Phase(const Phase&) = delete;

  bool is_input(int32_t slot) const;
  void bind_input(int32_t slot, const SlotTensor& values, const SlotTensor& grad);
  void bind_result(int32_t slot, const SlotTensor& values, const SlotTensor& grad);

  // Values of a variable: a contiguous tensor over the plates of the step that sums it out.
  struct Values {
    int64_t* data = nullptr;
    std::vector<int32_t> plates;
  };
  // Prepares draws of the variables that the phase sums out. `values` are those of all variables by dim;
  // `uniform` has each step's numbers, or is null to take the largest terms.
  void bind_draws(const std::vector<Values>& values, const std::vector<const double*>& uniform);

  int64_t tiles() const;
  // Outputs of steps that reduce the lane plate, in the order of their columns in `partial`.
  const std::vector<int32_t>& reduced() const { return reduced_; }

  ContractionPhase phase{};

 private:
  struct Tables {
    std::vector<std::vector<int32_t>> slice, element, term;
    std::vector<const int32_t*> slice_at, element_at, term_at;
  };

  int32_t message_of(int32_t slot);
  void add_step(int32_t number);
  void set_view(int32_t slot, const SlotTensor& tensor, ContractionView& view);
  std::vector<int32_t> plates_of(const std::vector<int32_t>& dims) const;
  std::vector<int32_t> variables_of(const std::vector<int32_t>& dims) const;
  int64_t volume(const std::vector<int32_t>& dims) const;
  std::vector<int32_t> table(const std::vector<int32_t>& loop, const std::vector<int32_t>& own) const;
  std::vector<int64_t> offsets(int32_t slot, const std::vector<int32_t>& loop, const SlotTensor& tensor) const;
  void lay_out();
  ContractionChoice choice_of(const Values& values, int32_t dim, const std::vector<int32_t>& slices,
                              const std::vector<int32_t>& elements);

  const PlanProgram& program_;
  const int32_t lane_;
  std::vector<int32_t> message_number_;  // of each slot, or -1
  std::vector<int32_t> slot_of_;         // of each message
  std::vector<ContractionMessage> messages_;
  std::vector<ContractionStep> steps_;
  std::vector<ContractionResult> results_;
  std::vector<int32_t> reduced_;
  // Deques: what they hold must not move.
  std::deque<ContractionFactor> factors_;
  std::deque<Tables> tables_;
  std::deque<std::vector<int32_t>> input_lists_;
  std::deque<std::vector<int64_t>> offsets_;
  std::vector<int32_t> step_number_;  // in the program
  std::vector<ContractionDraw> draws_;
  std::deque<std::vector<ContractionChoice>> choices_;
};

// A connected component of a plan: the phase with the lane plate (absent without plates), then the rest.
struct Component {
  std::vector<int32_t> lane_steps, rest_steps;
  int32_t lane = -1;
  int32_t result = 0;
  bool result_has_lane = false;
};

std::vector<Component> components(const PlanProgram& program);

}  // namespace sumprod
