#include "ops/contract_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include <torch/csrc/stable/library.h>

namespace sumprod {

namespace {

// Reads a plan number by number.
class Reader {
 public:
  explicit Reader(const std::string& encoded) : at_(encoded.data()), end_(at_ + encoded.size()) {}

  int64_t next() {
    int64_t value = -1;
    const auto [stop, error] = std::from_chars(at_, end_, value);
    STD_TORCH_CHECK(error == std::errc() && (stop == end_ || *stop == ' '),
                    "sumprod::contract: the plan ends too early");
    at_ = stop == end_ ? stop : stop + 1;
    return value;
  }

  int64_t next_below(int64_t limit) {
    const int64_t value = next();
    STD_TORCH_CHECK(0 <= value && value < limit, "sumprod::contract: the plan holds ", value, " where a number below ",
                    limit, " was expected");
    return value;
  }

  // A length: no plan is longer than its text.
  int64_t count() { return next_below(end_ - at_ + 1); }

  std::vector<int32_t> list(int64_t limit) {
    std::vector<int32_t> values(static_cast<size_t>(count()));
    for (int32_t& value : values) value = static_cast<int32_t>(next_below(limit));
    return values;
  }

  bool done() const { return at_ == end_; }

 private:
  const char *at_, *end_;
};

}  // namespace

PlanProgram::PlanProgram(const std::string& encoded) {
  Reader reader(encoded);
  const int64_t dims = reader.count();
  for (int64_t i = 0; i < dims; ++i) sizes.push_back(reader.next());
  for (int64_t i = 0; i < dims; ++i) is_plate.push_back(reader.next_below(2) != 0);
  const int64_t factor_count = reader.count();
  for (int64_t i = 0; i < factor_count; ++i) {
    operand_of.push_back(static_cast<int32_t>(reader.next_below(factor_count)));
    operands = std::max(operands, operand_of.back() + 1);
    factors.push_back(reader.list(dims));
  }
  const int64_t step_count = reader.count();
  for (int64_t i = 0; i < step_count; ++i) {
    PlanStep step;
    step.inputs = reader.list(factor_count + i);
    step.variables = reader.list(dims);
    step.plates = reader.list(dims);
    step.dims = reader.list(dims);
    STD_TORCH_CHECK(!step.inputs.empty() && (step.plates.empty() || step.inputs.size() == 1),
                    "sumprod::contract: step ", i, " of the plan must have one input, or reduce no plates");
    steps.push_back(std::move(step));
  }
  results = reader.list(factor_count + step_count);
  STD_TORCH_CHECK(reader.done(), "sumprod::contract: the plan has numbers left over");
  choose_orders();
}

std::vector<int64_t> PlanProgram::shape_of(int32_t slot) const {
  std::vector<int64_t> shape;
  for (int32_t dim : dims_of(slot)) shape.push_back(sizes[dim]);
  return shape;
}

int64_t PlanProgram::volume(const std::vector<int32_t>& dims) const {
  int64_t product = 1;
  for (int32_t dim : dims) product *= sizes[dim];
  return product;
}

std::vector<int32_t> PlanProgram::plates_in(const std::vector<int32_t>& dims) const {
  std::vector<int32_t> out;
  for (int32_t dim : dims) {
    if (is_plate[dim]) out.push_back(dim);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<int32_t> PlanProgram::variables_in(const std::vector<int32_t>& dims) const {
  std::vector<int32_t> out;
  for (int32_t dim : dims) {
    if (!is_plate[dim]) out.push_back(dim);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Backwards: the order of a step's output is known before those of its inputs.
void PlanProgram::choose_orders() {
  const auto factor_count = static_cast<int32_t>(factors.size());
  order.resize(factors.size() + steps.size());
  for (int32_t slot : results) order[slot] = variables_in(dims_of(slot));
  for (int32_t i = static_cast<int32_t>(steps.size()) - 1; i >= 0; --i) {
    for (int32_t input : steps[i].inputs) {
      const std::vector<int32_t>& dims = dims_of(input);
      std::vector<int32_t>& chosen = order[input];
      for (int32_t dim : variables_in(steps[i].variables)) {
        if (holds(dims, dim)) chosen.push_back(dim);
      }
      for (int32_t dim : order[factor_count + i]) {
        if (holds(dims, dim)) chosen.push_back(dim);
      }
    }
  }
}

// ---- components -----------------------------------------------------------------------------

namespace {

bool has_dim(const PlanProgram& program, const PlanStep& step, int32_t dim) {
  return std::any_of(step.inputs.begin(), step.inputs.end(),
                     [&](int32_t slot) { return holds(program.dims_of(slot), dim); });
}

// All dims of a step's inputs.
std::vector<int32_t> scope_of(const PlanProgram& program, const PlanStep& step) {
  std::vector<int32_t> scope;
  for (int32_t slot : step.inputs) {
    for (int32_t dim : program.dims_of(slot)) {
      if (!holds(scope, dim)) scope.push_back(dim);
    }
  }
  return scope;
}

// The plate in which most of the work is done (the result's own plates serve where nothing is done), unless
// it fills registers less well than the elements of messages do: then -1.
int32_t choose_lane(const PlanProgram& program, const std::vector<int32_t>& steps, int32_t result, double width) {
  const auto registers = [&](double count) { return std::ceil(count / width); };
  std::vector<double> work(program.sizes.size(), 0.0), by_elements(program.sizes.size(), 0.0);
  for (int32_t dim : program.dims_of(result)) work[dim] += 1;
  for (int32_t number : steps) {
    const PlanStep& step = program.steps[number];
    const std::vector<int32_t> scope = scope_of(program, step);
    const auto elements = static_cast<double>(program.volume(program.variables_in(step.dims)));
    const double own = static_cast<double>(step.inputs.size() * program.volume(scope));
    for (int32_t dim : scope) {
      if (!program.is_plate[dim]) continue;
      work[dim] += own;
      by_elements[dim] += own * registers(elements) / elements;
    }
  }
  int32_t best = -1;
  for (size_t dim = 0; dim < work.size(); ++dim) {
    if (program.is_plate[dim] && work[dim] > 0 && (best < 0 || work[dim] > work[best]))
      best = static_cast<int32_t>(dim);
  }
  if (best < 0) return best;
  const auto size = static_cast<double>(program.sizes[best]);
  return work[best] * registers(size) / size > 2 * by_elements[best] && by_elements[best] > 0 ? -1 : best;
}

}  // namespace

std::vector<Component> components(const PlanProgram& program, int width) {
  const auto factor_count = static_cast<int32_t>(program.factors.size());
  std::vector<Component> out;
  for (int32_t result : program.results) {
    std::vector<int32_t> steps, pending{result};
    while (!pending.empty()) {
      const int32_t slot = pending.back();
      pending.pop_back();
      if (slot < factor_count) continue;
      steps.push_back(slot - factor_count);
      for (int32_t input : program.steps[slot - factor_count].inputs) pending.push_back(input);
    }
    std::sort(steps.begin(), steps.end());
    Component component;
    component.result = result;
    component.lane = choose_lane(program, steps, result, width);
    for (int32_t number : steps) {
      const bool in_lane = component.lane >= 0 && has_dim(program, program.steps[number], component.lane);
      (in_lane ? component.lane_steps : component.rest_steps).push_back(number);
    }
    component.result_has_lane = component.lane >= 0 && holds(program.dims_of(result), component.lane);
    out.push_back(std::move(component));
  }
  return out;
}

}  // namespace sumprod
