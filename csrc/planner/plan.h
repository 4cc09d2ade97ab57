// Contraction of a plated factor graph: what is asked, and the program that does it.
//
// A factor is a tensor with named dims. A dim is a variable, to be summed out, or a plate: the factors
// inside a plate are replicated along it, independently given everything outside, so a plate is
// reduced by multiplying. With x the variables and f the factors, the result is
//
//     sum over x of  prod over f of  prod over the replicates of f's plates of  f(...)
//
// A variable that occurs only together with a plate is replicated along it: one per slice.
// Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".
//
// Nothing here touches data: a plan depends on dims and sizes only.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sumprod::planner {

using Dim = std::int32_t;       // index into Graph::sizes
using Dims = std::vector<Dim>;  // sorted, without repeats

struct Graph {
  std::vector<std::int64_t> sizes;  // of each dim
  std::vector<bool> is_plate;       // else a variable
  std::vector<std::string> names;   // for messages
  std::vector<Dims> factors;
  Dims kept;                        // dims of the result: variables not summed, plates not reduced
  bool keep_common_plates = false;  // per component, keep the plates that all its factors are in
};

// out[dims] = reduce over `plates` ( sum over `variables` ( product of the inputs ) )
struct Step {
  std::vector<std::int32_t> inputs;  // slots: first the factors, then the outputs of the steps
  Dims variables;
  Dims plates;
  Dims dims;  // of the output
};

struct Plan {
  std::vector<Step> steps;
  std::vector<std::int32_t> results;  // slots, one per connected component
  double flops = 0;                   // multiplications and additions of all steps
  std::int64_t peak_elements = 0;     // of intermediate tensors alive at one time
};

// The graph would need a number of operations exponential in the size of a plate.
class NotTreeStructured : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws NotTreeStructured; std::invalid_argument where `kept` names a plated variable without the
// variable's plates.
Plan make_plan(const Graph& graph);

}  // namespace sumprod::planner
