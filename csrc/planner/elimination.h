// The order in which variables are summed out of the factors of one plate context.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/plan.h"

namespace sumprod::planner {

// What makes a variable come early.
enum class Heuristic {
  kSmallestResult,  // few elements in the factor that its elimination makes
  kLeastGrowth,     // elements made minus elements consumed
  kMinFill,         // few pairs of neighbours that become adjacent
};

// A heuristic, and a seed that perturbs its scores; 0: unperturbed.
struct Order {
  Heuristic heuristic;
  std::uint64_t seed = 0;
};

// A factor that a plan works on: where its tensor is, and its dims.
struct Term {
  std::int32_t slot;
  Dims dims;
};

// Sums `variables` out of the product of `terms`, which the variables connect (or which are one term):
// appends steps, with output slots from `next_slot` on, and returns the one term that remains. `flops`
// grows by their cost.
Term eliminate(const Graph& graph, std::vector<Term> terms, const Dims& variables, const Order& order,
               std::int32_t next_slot, std::vector<Step>& steps, double& flops);

// A step that multiplies terms and sums variables out, as a term in the given slot.
Term append_step(const Graph& graph, const std::vector<Term>& inputs, Dims variables, std::int32_t slot,
                 std::vector<Step>& steps, double& flops);

}  // namespace sumprod::planner
