#include "ops/contract_program.h"

#include <algorithm>

#include "core/isa.h"

namespace sumprod {

namespace {

// Reads a plan number by number.
class Reader {
 public:
  explicit Reader(const std::vector<int64_t>& encoded) : at_(encoded.data()), end_(at_ + encoded.size()) {}

  int64_t next() {
    STD_TORCH_CHECK(at_ < end_, "sumprod::contract: the plan ends too early");
    return *at_++;
  }

  int64_t next_below(int64_t limit) {
    const int64_t value = next();
    STD_TORCH_CHECK(0 <= value && value < limit, "sumprod::contract: the plan holds ", value, " where a number below ",
                    limit, " was expected");
    return value;
  }

  std::vector<int32_t> list(int64_t limit) {
    std::vector<int32_t> values(static_cast<size_t>(next_below(end_ - at_ + 1)));
    for (int32_t& value : values) value = static_cast<int32_t>(next_below(limit));
    return values;
  }

  bool done() const { return at_ == end_; }

 private:
  const int64_t *at_, *end_;
};

bool holds(const std::vector<int32_t>& list, int32_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

PlanProgram::PlanProgram(const std::vector<int64_t>& encoded) {
  const auto numbers = static_cast<int64_t>(encoded.size());
  Reader reader(encoded);
  const int64_t dims = reader.next_below(numbers);
  for (int64_t i = 0; i < dims; ++i) sizes.push_back(reader.next());
  for (int64_t i = 0; i < dims; ++i) is_plate.push_back(reader.next_below(2) != 0);
  const int64_t factor_count = reader.next_below(numbers);
  for (int64_t i = 0; i < factor_count; ++i) factors.push_back(reader.list(dims));
  const int64_t step_count = reader.next_below(numbers);
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
}

std::vector<int64_t> PlanProgram::shape_of(int32_t slot) const {
  std::vector<int64_t> shape;
  for (int32_t dim : dims_of(slot)) shape.push_back(sizes[dim]);
  return shape;
}

// ---- a phase --------------------------------------------------------------------------------

Phase::Phase(const PlanProgram& program, const std::vector<int32_t>& steps, const std::vector<int32_t>& results,
             int32_t lane)
    : program_(program), lane_(lane), message_number_(program.factors.size() + program.steps.size(), -1) {
  for (int32_t number : steps) add_step(number);
  step_number_ = steps;
  for (int32_t slot : results) {
    ContractionResult result{};
    result.message = message_of(slot);
    results_.push_back(result);
  }
  lay_out();
}

std::vector<int32_t> Phase::plates_of(const std::vector<int32_t>& dims) const {
  std::vector<int32_t> out;
  for (int32_t dim : dims) {
    if (program_.is_plate[dim] && dim != lane_) out.push_back(dim);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<int32_t> Phase::variables_of(const std::vector<int32_t>& dims) const {
  std::vector<int32_t> out;
  for (int32_t dim : dims) {
    if (!program_.is_plate[dim]) out.push_back(dim);
  }
  std::sort(out.begin(), out.end());
  return out;
}

int64_t Phase::volume(const std::vector<int32_t>& dims) const {
  int64_t product = 1;
  for (int32_t dim : dims) product *= program_.sizes[dim];
  return product;
}

// For each position in the dims of `loop`, in row-major order, the part of the row-major index in the
// dims of `own` that those dims determine.
std::vector<int32_t> Phase::table(const std::vector<int32_t>& loop, const std::vector<int32_t>& own) const {
  std::vector<int32_t> out{0};
  for (int32_t dim : loop) {
    int64_t stride = 0;
    const auto found = std::find(own.begin(), own.end(), dim);
    if (found != own.end()) stride = volume({found + 1, own.end()});
    std::vector<int32_t> longer;
    longer.reserve(out.size() * static_cast<size_t>(program_.sizes[dim]));
    for (int32_t base : out) {
      for (int64_t i = 0; i < program_.sizes[dim]; ++i) longer.push_back(base + static_cast<int32_t>(i * stride));
    }
    out = std::move(longer);
  }
  return out;
}

std::vector<int64_t> Phase::offsets(int32_t slot, const std::vector<int32_t>& loop, const SlotTensor& tensor) const {
  const std::vector<int32_t>& dims = program_.dims_of(slot);
  std::vector<int64_t> out{0};
  for (int32_t dim : loop) {
    const int64_t stride = tensor.strides[std::find(dims.begin(), dims.end(), dim) - dims.begin()];
    std::vector<int64_t> longer;
    longer.reserve(out.size() * static_cast<size_t>(program_.sizes[dim]));
    for (int64_t base : out) {
      for (int64_t i = 0; i < program_.sizes[dim]; ++i) longer.push_back(base + i * stride);
    }
    out = std::move(longer);
  }
  return out;
}

int32_t Phase::message_of(int32_t slot) {
  if (message_number_[slot] < 0) {
    const std::vector<int32_t>& dims = program_.dims_of(slot);
    message_number_[slot] = static_cast<int32_t>(messages_.size());
    messages_.push_back({volume(plates_of(dims)), volume(variables_of(dims)), 0, nullptr});
    slot_of_.push_back(slot);
  }
  return message_number_[slot];
}

void Phase::add_step(int32_t number) {
  const PlanStep& plan = program_.steps[number];
  const auto factor_count = static_cast<int32_t>(program_.factors.size());
  ContractionStep step{};
  std::vector<int32_t>& inputs = input_lists_.emplace_back();
  for (int32_t slot : plan.inputs) inputs.push_back(message_of(slot));
  step.inputs = static_cast<int32_t>(inputs.size());
  step.input = inputs.data();
  step.output = message_of(factor_count + number);
  step.reduces_plates = !plan.plates.empty();
  step.reduces_lanes = lane_ >= 0 && holds(plan.plates, lane_);
  if (step.reduces_lanes) reduced_.push_back(factor_count + number);
  const std::vector<int32_t> out_plates = plates_of(plan.dims), out_variables = variables_of(plan.dims);
  const std::vector<int32_t> terms = step.reduces_plates ? plates_of(plan.plates) : variables_of(plan.variables);
  step.slices = volume(out_plates);
  step.terms = volume(terms);
  Tables& tables = tables_.emplace_back();
  for (int32_t slot : plan.inputs) {
    const std::vector<int32_t>& dims = program_.dims_of(slot);
    const std::vector<int32_t> plates = plates_of(dims), variables = variables_of(dims);
    tables.slice.push_back(table(out_plates, plates));
    tables.element.push_back(table(out_variables, variables));
    tables.term.push_back(table(terms, step.reduces_plates ? plates : variables));
  }
  for (size_t i = 0; i < plan.inputs.size(); ++i) {
    tables.slice_at.push_back(tables.slice[i].data());
    tables.element_at.push_back(tables.element[i].data());
    tables.term_at.push_back(tables.term[i].data());
  }
  step.slice_at = tables.slice_at.data();
  step.element_at = tables.element_at.data();
  step.term_at = tables.term_at.data();
  steps_.push_back(step);
}

// Outputs of steps stay in memory, for the backward pass; inputs are there during their step only.
void Phase::lay_out() {
  std::vector<bool> computed(messages_.size(), false);
  for (const ContractionStep& step : steps_) computed[step.output] = true;
  const auto registers = [&](const ContractionMessage& m) { return m.slices * (m.elements + 3); };
  int64_t used = 0;
  for (size_t m = 0; m < messages_.size(); ++m) {
    if (!computed[m]) continue;
    messages_[m].offset = used;
    used += registers(messages_[m]);
  }
  int64_t most = 0;
  for (const ContractionStep& step : steps_) {
    int64_t scratch = 0;
    for (int32_t i = 0; i < step.inputs; ++i) {
      ContractionMessage& m = messages_[step.input[i]];
      if (computed[step.input[i]]) continue;
      m.offset = used + scratch;
      scratch += registers(m);
    }
    most = std::max(most, scratch);
  }
  for (const ContractionResult& result : results_) {
    ContractionMessage& m = messages_[result.message];
    if (computed[result.message]) continue;
    m.offset = used;
    most = std::max(most, registers(m));
  }
  int64_t columns = 0;
  for (int32_t slot : reduced_) {
    const ContractionMessage& m = messages_[message_number_[slot]];
    columns += m.slices * m.elements;
  }
  phase.messages = static_cast<int32_t>(messages_.size());
  phase.steps = static_cast<int32_t>(steps_.size());
  phase.results = static_cast<int32_t>(results_.size());
  phase.message = messages_.data();
  phase.step = steps_.data();
  phase.result = results_.data();
  phase.lanes = lane_ >= 0 ? program_.sizes[lane_] : 1;
  phase.scratch = used;
  phase.registers = used + most;
  phase.partial_row = columns;
}

bool Phase::is_input(int32_t slot) const {
  const int32_t m = message_number_[slot];
  if (m < 0) return false;
  return std::none_of(steps_.begin(), steps_.end(), [&](const ContractionStep& step) { return step.output == m; });
}

void Phase::set_view(int32_t slot, const SlotTensor& tensor, ContractionView& view) {
  const std::vector<int32_t>& dims = program_.dims_of(slot);
  view.slice = offsets_.emplace_back(offsets(slot, plates_of(dims), tensor)).data();
  view.element = offsets_.emplace_back(offsets(slot, variables_of(dims), tensor)).data();
  const auto lane = std::find(dims.begin(), dims.end(), lane_);
  view.lane_stride = lane == dims.end() ? 0 : tensor.strides[lane - dims.begin()];
  view.run = 1;
  const std::vector<int32_t> variables = variables_of(dims);
  for (auto dim = variables.rbegin(); dim != variables.rend(); ++dim) {
    if (tensor.strides[std::find(dims.begin(), dims.end(), *dim) - dims.begin()] != view.run) break;
    view.run *= program_.sizes[*dim];
  }
  view.is_double = tensor.is_double;
}

void Phase::bind_input(int32_t slot, const SlotTensor& values, const SlotTensor& grad) {
  ContractionFactor& factor = factors_.emplace_back();
  factor.data = values.data;
  factor.grad = grad.data;
  set_view(slot, values, factor.view);
  if (grad.data != nullptr) set_view(slot, grad, factor.grad_view);
  messages_[message_number_[slot]].factor = &factor;
}

void Phase::bind_result(int32_t slot, const SlotTensor& values, const SlotTensor& grad) {
  for (ContractionResult& result : results_) {
    if (slot_of_[result.message] != slot) continue;
    result.data = values.data;
    result.grad = grad.data;
    if (values.data != nullptr) set_view(slot, values, result.view);
    if (grad.data != nullptr) set_view(slot, grad, result.grad_view);
  }
}

ContractionChoice Phase::choice_of(const Values& values, int32_t dim, const std::vector<int32_t>& slices,
                                   const std::vector<int32_t>& elements) {
  ContractionChoice choice{};
  choice.data = values.data;
  choice.size = program_.sizes[dim];
  choice.stride = volume({std::find(elements.begin(), elements.end(), dim) + 1, elements.end()});
  const auto stride_of = [&](int32_t plate) -> int64_t {
    const auto found = std::find(values.plates.begin(), values.plates.end(), plate);
    return found == values.plates.end() ? 0 : volume({found + 1, values.plates.end()});
  };
  choice.lane_stride = stride_of(lane_);
  std::vector<int64_t> at{0};
  for (int32_t plate : slices) {
    std::vector<int64_t> longer;
    for (int64_t base : at) {
      for (int64_t i = 0; i < program_.sizes[plate]; ++i) longer.push_back(base + i * stride_of(plate));
    }
    at = std::move(longer);
  }
  choice.slice = offsets_.emplace_back(std::move(at)).data();
  return choice;
}

void Phase::bind_draws(const std::vector<Values>& values, const std::vector<const double*>& uniform) {
  for (int32_t number : step_number_) {
    const PlanStep& step = program_.steps[number];
    const std::vector<int32_t> slices = plates_of(step.dims), elements = variables_of(step.dims),
                               terms = variables_of(step.variables);
    std::vector<ContractionChoice>& drawn = choices_.emplace_back();
    for (int32_t dim : terms) drawn.push_back(choice_of(values[dim], dim, slices, terms));
    std::vector<ContractionChoice>& given = choices_.emplace_back();
    if (!terms.empty()) {
      for (int32_t dim : elements) given.push_back(choice_of(values[dim], dim, slices, elements));
    }
    draws_.push_back({static_cast<int32_t>(drawn.size()), static_cast<int32_t>(given.size()), drawn.data(),
                      given.data(), uniform[number]});
  }
  phase.draw = draws_.data();
}

int64_t Phase::tiles() const {
  const int64_t width = vector_bytes(isa_in_use()) / static_cast<int64_t>(sizeof(float));
  return (phase.lanes + width - 1) / width;
}

// ---- components -----------------------------------------------------------------------------

namespace {

double work_of(const PlanProgram& program, const PlanStep& step) {
  std::vector<int32_t> scope;
  for (int32_t slot : step.inputs) {
    for (int32_t dim : program.dims_of(slot)) {
      if (!holds(scope, dim)) scope.push_back(dim);
    }
  }
  double work = static_cast<double>(step.inputs.size());
  for (int32_t dim : scope) work *= static_cast<double>(program.sizes[dim]);
  return work;
}

bool has_dim(const PlanProgram& program, const PlanStep& step, int32_t dim) {
  return std::any_of(step.inputs.begin(), step.inputs.end(),
                     [&](int32_t slot) { return holds(program.dims_of(slot), dim); });
}

// The plate in which most of the work is done; the result's own plates serve where nothing is done.
int32_t choose_lane(const PlanProgram& program, const std::vector<int32_t>& steps, int32_t result) {
  std::vector<double> work(program.sizes.size(), 0.0);
  for (int32_t dim : program.dims_of(result)) work[dim] += 1;
  for (int32_t number : steps) {
    const PlanStep& step = program.steps[number];
    const double own = work_of(program, step);
    for (size_t dim = 0; dim < work.size(); ++dim) {
      if (program.is_plate[dim] && has_dim(program, step, static_cast<int32_t>(dim))) work[dim] += own;
    }
  }
  int32_t best = -1;
  for (size_t dim = 0; dim < work.size(); ++dim) {
    if (program.is_plate[dim] && work[dim] > 0 && (best < 0 || work[dim] > work[best]))
      best = static_cast<int32_t>(dim);
  }
  return best;
}

}  // namespace

std::vector<Component> components(const PlanProgram& program) {
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
    component.lane = choose_lane(program, steps, result);
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
