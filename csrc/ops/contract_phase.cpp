#include "ops/contract_phase.h"

#include <algorithm>
#include <utility>

#include "core/isa.h"

namespace sumprod {

namespace {

bool share_any(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::any_of(a.begin(), a.end(), [&](int32_t value) { return holds(b, value); });
}

}  // namespace

// ---- a phase --------------------------------------------------------------------------------

PhaseProgram::PhaseProgram(const PlanProgram& program, std::vector<int32_t> steps, int32_t result, int32_t lane)
    : program_(program), lane_(lane), step_numbers_(std::move(steps)) {
  for (int32_t number : step_numbers_) add_step(number);
  if (result >= 0) result_message_ = message_of(result);
  collect_inputs();
  forward_messages_ = messages_;
  lay_out(shape, messages_, false);
  lay_out(forward_shape, forward_messages_, true);
}

std::vector<int32_t> PhaseProgram::slices_of(const std::vector<int32_t>& dims) const {
  std::vector<int32_t> plates = program_.plates_in(dims);
  std::erase(plates, lane_);
  return plates;
}

int64_t PhaseProgram::tiles() const {
  const int64_t width = shape.has_lanes ? vector_bytes(isa_in_use()) / static_cast<int64_t>(sizeof(float)) : 1;
  return (shape.lanes + width - 1) / width;
}

// For each position in the dims of `loop`, the part of the row-major index in the dims of `own` that it
// determines.
const int32_t* PhaseProgram::table(const std::vector<int32_t>& loop, const std::vector<int32_t>& own) {
  std::vector<int64_t> sizes, strides;
  for (int32_t dim : loop) {
    const auto found = std::find(own.begin(), own.end(), dim);
    sizes.push_back(program_.sizes[dim]);
    strides.push_back(found == own.end() ? 0 : program_.volume({found + 1, own.end()}));
  }
  return tables_.keep(distances<int32_t>(sizes, strides));
}

int32_t PhaseProgram::message_of(int32_t slot) {
  const auto [found, is_new] = message_number_.try_emplace(slot, static_cast<int32_t>(messages_.size()));
  if (is_new) {
    const std::vector<int32_t>& dims = program_.dims_of(slot);
    messages_.push_back({program_.volume(slices_of(dims)), program_.volume(program_.variables_in(dims)), 0, 0, -1});
    slot_of_.push_back(slot);
  }
  return found->second;
}

void PhaseProgram::add_step(int32_t number) {
  const PlanStep& plan = program_.steps[number];
  const int32_t output = static_cast<int32_t>(program_.factors.size()) + number;
  ContractionStep step{};
  std::vector<ContractionInput>& inputs = input_lists_.emplace_back();
  for (int32_t slot : plan.inputs) inputs.push_back(input_of(plan, output, slot));
  step.inputs = static_cast<int32_t>(inputs.size());
  step.input = inputs.data();
  step.output = message_of(output);
  step.reduces_plates = !plan.plates.empty();
  step.reduces_lanes = lane_ >= 0 && holds(plan.plates, lane_);
  if (step.reduces_lanes) reduced_.push_back(output);
  step.terms = program_.volume(step.reduces_plates ? slices_of(plan.plates) : plan.variables);
  step.matrix = -1;
  int32_t both = 0;
  for (int32_t i = 0; i < step.inputs; ++i) {
    if (inputs[i].role != ContractionRole::both) continue;
    ++both;
    // All dims of the step, so that its entries lie in the order of terms and elements.
    if (program_.order[plan.inputs[i]].size() == plan.variables.size() + program_.order[output].size()) step.matrix = i;
  }
  if (both != 1) step.matrix = -1;
  steps_.push_back(step);
}

ContractionInput PhaseProgram::input_of(const PlanStep& step, int32_t output, int32_t slot) {
  const std::vector<int32_t>& dims = program_.dims_of(slot);
  const std::vector<int32_t>& order = program_.order[slot];
  const std::vector<int32_t> slices = slices_of(dims), terms = program_.variables_in(step.variables);
  ContractionInput input{};
  input.message = message_of(slot);
  const bool has_terms = share_any(order, terms), has_elements = share_any(order, program_.order[output]);
  input.role = has_terms && has_elements ? ContractionRole::both
               : has_terms               ? ContractionRole::terms
               : has_elements            ? ContractionRole::elements
                                         : ContractionRole::neither;
  input.slice_at = table(slices_of(step.dims), slices);
  input.element_at = table(program_.order[output], order);
  input.term_at = step.plates.empty() ? table(terms, order) : table(slices_of(step.plates), slices);
  return input;
}

void PhaseProgram::collect_inputs() {
  std::vector<bool> computed(messages_.size(), false);
  for (const ContractionStep& step : steps_) computed[step.output] = true;
  for (size_t m = 0; m < messages_.size(); ++m) {
    if (computed[m]) continue;
    messages_[m].factor = static_cast<int32_t>(inputs_.size());
    inputs_.push_back({slot_of_[m], static_cast<int32_t>(m)});
  }
}

namespace {

// Places messages in a tile's memory.
class Room {
 public:
  void place(ContractionMessage& m) {
    std::vector<ContractionMessage>& left = left_[{m.slices, m.elements}];
    if (!left.empty()) {
      m.value_at = left.back().value_at;
      m.slice_at = left.back().slice_at;
      left.pop_back();
      return;
    }
    m.value_at = values;
    m.slice_at = slices;
    values += m.slices * m.elements;
    slices += m.slices;
  }
  // Another of the same size may have the place.
  void leave(const ContractionMessage& m) { left_[{m.slices, m.elements}].push_back(m); }

  int64_t values = 0, slices = 0;

 private:
  std::map<std::pair<int64_t, int64_t>, std::vector<ContractionMessage>> left_;
};

}  // namespace

// Inputs from outside are in memory during their step only, after all that is kept.
void PhaseProgram::lay_out(ContractionShape& to, std::vector<ContractionMessage>& messages, bool reuses) {
  Room kept;
  for (const ContractionStep& step : steps_) {
    kept.place(messages[step.output]);
    // What is summed over lanes is read once more, at the end.
    if (!reuses || step.reduces_lanes) continue;
    for (int32_t i = 0; i < step.inputs; ++i) {
      if (messages[step.input[i].message].factor < 0) kept.leave(messages[step.input[i].message]);
    }
  }
  to.kept_values = to.values = kept.values;
  to.slices = kept.slices;
  const auto place_inputs = [&](auto&& numbers) {
    Room room;
    for (int32_t number : numbers) {
      ContractionMessage& m = messages[number];
      if (m.factor < 0) continue;
      room.place(m);
      m.value_at += kept.values;
      m.slice_at += kept.slices;
    }
    to.values = std::max(to.values, kept.values + room.values);
    to.slices = std::max(to.slices, kept.slices + room.slices);
  };
  for (const ContractionStep& step : steps_) {
    std::vector<int32_t> numbers;
    for (int32_t i = 0; i < step.inputs; ++i) numbers.push_back(step.input[i].message);
    place_inputs(numbers);
    if (step.reduces_lanes) to.partial_row += messages[step.output].slices * messages[step.output].elements;
    to.inputs = std::max(to.inputs, step.inputs);
    to.terms = std::max(to.terms, step.terms);
    to.elements = std::max(to.elements, messages[step.output].elements);
  }
  if (result_message_ >= 0) place_inputs(std::initializer_list<int32_t>{result_message_});
  to.messages = static_cast<int32_t>(messages.size());
  to.steps = static_cast<int32_t>(steps_.size());
  to.message = messages.data();
  to.step = steps_.data();
  to.has_lanes = lane_ >= 0;
  to.lanes = lane_ >= 0 ? program_.sizes[lane_] : 1;
}

// ---- layouts --------------------------------------------------------------------------------

SlotLayout contiguous_layout(const PlanProgram& program, int32_t slot, const std::vector<bool>& broadcast) {
  const std::vector<int64_t> shape = program.shape_of(slot);
  SlotLayout layout{std::vector<int64_t>(shape.size()), broadcast};
  layout.broadcast.resize(shape.size(), false);
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    layout.strides[d] = layout.broadcast[d] ? 0 : stride;
    stride *= layout.broadcast[d] ? 1 : shape[d];
  }
  return layout;
}

SlotLayout message_layout(const PlanProgram& program, int32_t slot) {
  const std::vector<int32_t>& dims = program.dims_of(slot);
  std::vector<int32_t> in_order = program.plates_in(dims);
  in_order.insert(in_order.end(), program.order[slot].begin(), program.order[slot].end());
  SlotLayout layout{{}, std::vector<bool>(dims.size(), false)};
  for (int32_t dim : dims) {
    layout.strides.push_back(program.volume({std::find(in_order.begin(), in_order.end(), dim) + 1, in_order.end()}));
  }
  return layout;
}

ContractionView view_of(const PhaseProgram& phase, int32_t slot, const SlotLayout& layout, bool is_double,
                        Lists<int64_t>& lists) {
  const PlanProgram& program = phase.program();
  const std::vector<int32_t>& dims = program.dims_of(slot);
  const auto stride_of = [&](int32_t dim) -> int64_t {
    const auto found = std::find(dims.begin(), dims.end(), dim);
    return found == dims.end() || layout.broadcast[found - dims.begin()] ? 0 : layout.strides[found - dims.begin()];
  };
  const auto offsets = [&](const std::vector<int32_t>& loop) {
    std::vector<int64_t> sizes, strides;
    for (int32_t dim : loop) {
      sizes.push_back(program.sizes[dim]);
      strides.push_back(stride_of(dim));
    }
    return lists.keep(distances<int64_t>(sizes, strides));
  };
  const std::vector<int32_t>& order = program.order[slot];
  ContractionView view{};
  view.slice = offsets(phase.slices_of(dims));
  view.element = offsets(order);
  view.lane_stride = phase.lane() < 0 ? 0 : stride_of(phase.lane());
  view.run = 1;
  for (auto dim = order.rbegin(); dim != order.rend() && stride_of(*dim) == view.run; ++dim) {
    view.run *= program.sizes[*dim];
  }
  view.is_double = is_double;
  return view;
}

// ---- views ----------------------------------------------------------------------------------

PhaseViews::PhaseViews(const PhaseProgram& phase, const std::vector<SlotLayout>& operands, bool is_double,
                       bool with_gradients) {
  const PlanProgram& program = phase.program();
  const auto factor_count = static_cast<int32_t>(program.factors.size());
  for (const PhaseProgram::Input& input : phase.inputs()) {
    const bool linked = input.slot >= factor_count;
    const int32_t operand = linked ? -1 : program.operand_of[input.slot];
    const SlotLayout& layout = linked ? message_layout(program, input.slot) : operands[operand];
    ContractionFactor& factor = factors.emplace_back();
    factor = {};
    factor.view = view_of(phase, input.slot, layout, linked || is_double, lists_);
    factor.shared = -1;
    const std::vector<int32_t>& dims = program.dims_of(input.slot);
    const auto lane = std::find(dims.begin(), dims.end(), phase.lane());
    // Without a position of its own for each lane, gradients of the lanes are added up.
    const bool one_for_all = lane == dims.end() || layout.broadcast[lane - dims.begin()];
    if (with_gradients) {
      const SlotLayout& grad = linked ? layout : contiguous_layout(program, input.slot, layout.broadcast);
      factor.grad_view = view_of(phase, input.slot, grad, linked || is_double, lists_);
      for (size_t d = 0; !linked && d < dims.size(); ++d) {
        factor.adds = factor.adds || (layout.broadcast[d] && dims[d] != phase.lane());
      }
    }
    if (phase.lane() >= 0 && factor.view.lane_stride == 0 && (one_for_all || !with_gradients)) {
      share(phase, factors.size() - 1, operand, with_gradients);
    }
  }
}

void PhaseViews::share(const PhaseProgram& phase, size_t input, int32_t operand, bool accumulates) {
  const int32_t message = phase.inputs()[input].message;
  const ContractionMessage& m = phase.shape.message[message];
  ContractionFactor& factor = factors[input];
  // Lists are kept once: equal addresses are equal offsets.
  const std::vector<int64_t> key{operand, reinterpret_cast<int64_t>(factor.view.slice),
                                 reinterpret_cast<int64_t>(factor.view.element), m.slices, m.elements};
  const auto [found, is_new] = known_shared_.try_emplace(key, static_cast<int32_t>(shared.size()));
  factor.shared = found->second;
  if (!is_new) return;
  shared.push_back({message, static_cast<int32_t>(input), shared_values, shared_slices, accumulates, factor.adds});
  shared_values += m.slices * m.elements;
  shared_slices += m.slices;
  if (!accumulates) return;
  const auto [place, first] = accumulated_of_.try_emplace(operand, accumulated.size());
  if (first) accumulated.emplace_back();
  accumulated[place->second].push_back(factor.shared);
}

}  // namespace sumprod
