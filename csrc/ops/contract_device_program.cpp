#include "ops/contract_device_program.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "ops/contract_device_layout.h"
#include "ops/contract_device_levels.h"
#include "ops/contract_device_phases.h"
#include "ops/contract_device_places.h"

namespace sumprod {

namespace {

class ProgramBuilder {
 public:
  ProgramBuilder(const PlanProgram& plan, const DeviceCall& call)
      : plan_(plan),
        call_(call),
        numbers_(plan),
        axes_(plan),
        levels_(program_, call.multiprocessors),
        phases_(plan),
        places_(phases_, call, levels_) {}

  DeviceProgram build();

 private:
  void append(PendingOp& to, const DeviceLocation& at, const DeviceLoops& loops, const DevicePhase& phase) {
    to.operands.push_back(axes_.operand(at, loops, phase.lane, phase.shape.log_group));
  }
  void append_inputs(PendingOp& to, const DeviceStep& step, const DeviceLoops& loops, const DevicePhase& phase);
  PendingOp start(DeviceKind kind, const DeviceLoops& loops, const DevicePhase& phase) const;
  PendingOp forward_op(const DevicePhase& phase, const DeviceStep& step);
  PendingOp gradient_op(const DevicePhase& phase, const DeviceStep& step, int32_t input);
  PendingOp draw_op(const DevicePhase& phase, const DeviceStep& step);
  void forward(DevicePhase& phase);
  void backward(DevicePhase& phase);
  void draws(DevicePhase& phase);
  void place_sums();
  void sum_lanes();
  void launch_all();

  const PlanProgram& plan_;
  const DeviceCall& call_;
  const PointerNumbers numbers_;
  DeviceProgram program_;
  DeviceAxes axes_;
  DeviceLevels levels_;
  DevicePhases phases_;
  DevicePlaces places_;
  std::vector<int64_t> uniform_at_;        // of each step
  std::map<int32_t, PlanDims> plates_of_;  // of each variable: those of the step that sums it out
};

PendingOp ProgramBuilder::start(DeviceKind kind, const DeviceLoops& loops, const DevicePhase& phase) const {
  PendingOp pending;
  DeviceOp& op = pending.op;
  op.kind = kind;
  op.elements = plan_.volume(loops.elements);
  op.outputs = op.chunk_outputs = (plan_.volume(loops.slices) * op.elements) << phase.shape.log_group;
  op.terms = op.chunk_terms = plan_.volume(loops.terms);
  return pending;
}

void ProgramBuilder::append_inputs(PendingOp& to, const DeviceStep& step, const DeviceLoops& loops,
                                   const DevicePhase& phase) {
  std::vector<DeviceOperand> constant;
  // Sums count the terms that do not vary, too.
  const bool all_vary = to.op.kind == DeviceKind::plates || to.op.kind == DeviceKind::sum;
  for (int32_t slot : step.inputs) {
    const DeviceOperand operand = axes_.operand(places_.value_of(slot), loops, phase.lane, phase.shape.log_group);
    if (all_vary || varies(operand.term)) {
      to.operands.push_back(operand);
      ++to.op.inner;
    } else {
      constant.push_back(operand);
    }
  }
  to.operands.insert(to.operands.end(), constant.begin(), constant.end());
  to.op.inputs = static_cast<int32_t>(step.inputs.size());
}

PendingOp ProgramBuilder::forward_op(const DevicePhase& phase, const DeviceStep& step) {
  const DeviceLoops loops = phases_.loops_of(phase, step);
  const DeviceKind kind = step.reduces     ? (call_.max_plus ? DeviceKind::sum : DeviceKind::plates)
                          : call_.max_plus ? DeviceKind::largest
                                           : DeviceKind::log_sum;
  PendingOp pending = start(kind, loops, phase);
  append(pending, places_.value_of(step.output), loops, phase);
  append_inputs(pending, step, loops, phase);
  return pending;
}

PendingOp ProgramBuilder::gradient_op(const DevicePhase& phase, const DeviceStep& step, int32_t input) {
  const bool into_factor = phases_.is_factor(input);
  const DeviceLocation at = into_factor ? places_.factor_gradient(phase, input) : places_.gradient_of(input);
  DeviceLoops loops;
  for (int32_t dim : phases_.slices_of(phases_.dims_of(input), phase.lane)) {
    if (at.has(dim)) loops.slices.push_back(dim);
  }
  for (int32_t dim : phases_.order_of(input)) {
    if (at.has(dim)) loops.elements.push_back(dim);
  }
  // The shares of all terms of an output together are its gradient.
  const bool whole =
      step.reduces || std::none_of(step.terms.begin(), step.terms.end(), [&](int32_t dim) { return at.has(dim); });
  for (int32_t dim : phases_.scope_of(phase, step)) {
    const bool own = at.has(dim), summed_out = !step.reduces && whole && holds(step.terms, dim);
    if (!own && !summed_out) loops.terms.push_back(dim);
  }
  PendingOp pending = start(whole ? DeviceKind::pass : DeviceKind::share, loops, phase);
  if (into_factor) {
    const int32_t operand = plan_.operand_of[input];
    const bool sums_lanes = places_.sums_lanes(phase, input);
    pending.op.adds = sums_lanes || program_.adds[operand] ? 1 : 0;
    if (pending.op.adds) pending.sums_into = 2 * operand + (sums_lanes ? 1 : 0);
  }
  append(pending, at, loops, phase);
  append(pending, places_.gradient_of(step.output), loops, phase);
  append(pending, places_.value_of(step.output), loops, phase);
  if (!whole) append_inputs(pending, step, loops, phase);
  return pending;
}

PendingOp ProgramBuilder::draw_op(const DevicePhase& phase, const DeviceStep& step) {
  const DeviceLoops loops = phases_.loops_of(phase, step);
  PendingOp pending = start(call_.max_plus ? DeviceKind::choose : DeviceKind::draw, loops, phase);
  DeviceOp& op = pending.op;
  op.elements = 1;  // which one follows from the values given
  op.outputs = op.chunk_outputs = plan_.volume(loops.slices) << phase.shape.log_group;
  DeviceLocation uniforms;
  uniforms.pointer = numbers_.uniforms();
  uniforms.offset = uniform_at_[step.number];
  uniforms.strides = dense_strides(plan_, plan_.plates_in(phases_.dims_of(step.output)), 1);
  append(pending, uniforms, {loops.slices, {}, {}}, phase);
  append_inputs(pending, step, loops, phase);
  const auto append_values = [&](const PlanDims& dims) {
    for (const auto& [dim, stride] : dense_strides(plan_, dims, 1)) {
      DeviceLocation values;
      values.pointer = numbers_.values(dim);
      values.strides = dense_strides(plan_, plates_of_.at(dim), 1);
      append(pending, values, {loops.slices, {}, {}}, phase);
      pending.operands.back().element.stride = stride;
      pending.operands.back().term.stride = plan_.sizes[dim];
    }
    return static_cast<int32_t>(dims.size());
  };
  op.given = append_values(loops.elements);
  op.drawn = append_values(loops.terms);
  return pending;
}

// ---- passes ---------------------------------------------------------------------------------

void ProgramBuilder::forward(DevicePhase& phase) {
  phase.forward_first = levels_.count();
  for (const auto& level : phase.levels) {
    std::vector<PendingOp> ops;
    for (const DeviceStep* step : level) ops.push_back(forward_op(phase, *step));
    levels_.add(phase.shape, std::move(ops));
  }
  phase.forward_end = phase.backward_end = levels_.count();
}

void ProgramBuilder::backward(DevicePhase& phase) {
  for (auto level = phase.levels.rbegin(); level != phase.levels.rend(); ++level) {
    std::vector<PendingOp> ops;
    for (const DeviceStep* step : *level) {
      for (int32_t input : step->inputs) ops.push_back(gradient_op(phase, *step, input));
    }
    levels_.add(phase.shape, std::move(ops));
  }
  phase.backward_end = levels_.count();
}

void ProgramBuilder::draws(DevicePhase& phase) {
  for (auto level = phase.levels.rbegin(); level != phase.levels.rend(); ++level) {
    std::vector<PendingOp> ops;
    for (const DeviceStep* step : *level) {
      if (!step->reduces && !step->terms.empty()) ops.push_back(draw_op(phase, *step));
    }
    levels_.add(phase.shape, std::move(ops));
  }
  phase.backward_end = levels_.count();
}

void ProgramBuilder::place_sums() {
  program_.cleared_at = levels_.allocate(0);
  for (const int32_t count : places_.place_sums()) program_.adds.push_back(count != 1);
  program_.cleared = program_.scratch - program_.cleared_at;
}

// Sums over blocks, and over the lanes of their groups, become gradients.
void ProgramBuilder::sum_lanes() {
  const DevicePhase last;
  std::vector<PendingOp> ops;
  int64_t work = 0, outputs = 0;
  for (const auto& phase : phases_.all()) {
    const int64_t rows = phase->shape.rows, lanes = int64_t{1} << phase->shape.log_group;
    for (const auto& [operand, sums] : phase->sums) {
      PendingOp pending = start(DeviceKind::sum, {}, last);
      DeviceOp& op = pending.op;
      op.outputs = op.chunk_outputs = op.elements = sums.row_stride / lanes;
      op.terms = op.chunk_terms = rows * lanes;
      op.inputs = op.inner = 1;
      op.adds = program_.adds[operand] ? 1 : 0;
      if (op.adds) pending.sums_into = operand;
      DeviceOperand target{}, from{};
      target.base = numbers_.gradient(operand);
      target.is_wide = call_.is_double ? 1 : 0;
      target.slice = target.term = from.slice = {0, -1};
      target.element = {1, -1};
      from.base = kScratchPointer;
      from.offset = sums.offset;
      from.element = {lanes, -1};
      from.term = axes_.axis({rows, lanes}, {sums.row_stride, 1});
      from.is_wide = 1;
      pending.operands = {target, from};
      outputs += op.outputs;
      work += op.outputs * op.terms;
      ops.push_back(std::move(pending));
    }
  }
  const PhaseShape shape = levels_.shape(1, {work}, {outputs}, 0);
  const int32_t first = levels_.count();
  levels_.add(shape, std::move(ops));
  levels_.launch(shape, first, levels_.count());
}

// Steps without lanes need what those with lanes have computed, and draws and gradients go the other way. A block
// that has worked on several groups of lanes has forgotten all but the last, and does them once more.
void ProgramBuilder::launch_all() {
  const bool returns = call_.pass != ContractPass::forward;
  for (const auto& phase : phases_.all()) {
    const bool is_last = phase == phases_.all().back();
    if (is_last || !returns || phase->linked) {
      levels_.launch(phase->shape, phase->forward_first, is_last ? phase->backward_end : phase->forward_end);
    }
  }
  for (const auto& phase : phases_.all()) {
    if (!returns || phase == phases_.all().back()) continue;
    const bool remembers = phase->linked && phase->shape.rows == phase->shape.groups;
    levels_.launch(phase->shape, remembers ? phase->forward_end : phase->forward_first, phase->backward_end);
  }
  if (call_.pass == ContractPass::backward) sum_lanes();
}

DeviceProgram ProgramBuilder::build() {
  int64_t used = 0;
  for (const PlanStep& step : plan_.steps) {
    uniform_at_.push_back(used);
    used += plan_.draws_of(step);
    for (int32_t dim : step.variables) {
      PlanDims& plates = plates_of_[dim];
      std::copy_if(step.dims.begin(), step.dims.end(), std::back_inserter(plates),
                   [&](int32_t own) { return plan_.is_plate[own]; });
    }
  }
  if (call_.pass == ContractPass::backward) place_sums();
  for (const auto& phase : phases_.all()) {
    forward(*phase);
    if (call_.pass == ContractPass::backward) backward(*phase);
    if (call_.pass == ContractPass::draw) draws(*phase);
  }
  launch_all();
  program_.tables = axes_.tables;
  return std::move(program_);
}

}  // namespace

DeviceProgram device_program(const PlanProgram& program, const DeviceCall& call) {
  return ProgramBuilder(program, call).build();
}

}  // namespace sumprod
