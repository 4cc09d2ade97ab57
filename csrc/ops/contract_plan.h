// Contraction plans as `contract` receives them: numbers, parsed, and split into connected components.
//
// A plan arrives as decimal numbers separated by spaces:
//   dims, sizes..., is plate...
//   factors, for each: operand, count, dims... (those of the tensor, in order)
//   steps, for each: inputs, slots..., variables, dims..., plates, dims..., count, dims... (of the output)
//   results, slots...
// Each list begins with its length. Slots are factors, then outputs of steps. Several factors may be one
// operand: one tensor in several places.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace sumprod {

inline bool holds(const std::vector<int32_t>& list, int32_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

struct PlanStep {
  std::vector<int32_t> inputs;
  std::vector<int32_t> variables, plates, dims;
};

struct PlanProgram {
  explicit PlanProgram(const std::string& encoded);

  const std::vector<int32_t>& dims_of(int32_t slot) const {
    const auto count = static_cast<int32_t>(factors.size());
    return slot < count ? factors[slot] : steps[slot - count].dims;
  }
  std::vector<int64_t> shape_of(int32_t slot) const;
  // The product of the sizes of dims.
  int64_t volume(const std::vector<int32_t>& dims) const;
  // The dims that are plates, or that are not, in increasing order.
  std::vector<int32_t> plates_in(const std::vector<int32_t>& dims) const;
  std::vector<int32_t> variables_in(const std::vector<int32_t>& dims) const;
  // Uniforms that a draw of a step's variables uses: one per slice of its output, all plates included, in the order
  // of plates_in.
  int64_t draws_of(const PlanStep& step) const { return step.variables.empty() ? 0 : volume(plates_in(step.dims)); }

  std::vector<int64_t> sizes;
  std::vector<bool> is_plate;
  std::vector<std::vector<int32_t>> factors;
  std::vector<int32_t> operand_of;  // of each factor
  int32_t operands = 0;
  std::vector<PlanStep> steps;
  std::vector<int32_t> results;
  // Of each slot, its variables in the order of its message's elements: what the step that takes it in sums
  // out, then what that step leaves, in the order of its output.
  std::vector<std::vector<int32_t>> order;

 private:
  void choose_orders();
};

// A connected component of a plan: the steps with the lane plate (none without plates), then the rest.
struct Component {
  std::vector<int32_t> lane_steps, rest_steps;
  int32_t lane = -1;
  int32_t result = 0;
  bool result_has_lane = false;
};

// `width`: the lanes of a register, which slices along the lane plate should fill.
std::vector<Component> components(const PlanProgram& program, int width);

}  // namespace sumprod
