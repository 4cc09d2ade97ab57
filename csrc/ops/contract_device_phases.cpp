#include "ops/contract_device_phases.h"

#include <algorithm>
#include <utility>

namespace sumprod {

DevicePhases::DevicePhases(const PlanProgram& plan) : plan_(plan) {
  collect_phases();
  for (const auto& phase : phases_) find_levels(*phase);
}

PlanDims DevicePhases::slices_of(const PlanDims& dims, int32_t lane) const {
  PlanDims out = plan_.plates_in(dims);
  std::erase(out, lane);
  return out;
}

DeviceLoops DevicePhases::loops_of(const DevicePhase& phase, const DeviceStep& step) const {
  return {slices_of(dims_of(step.output), phase.lane), order_of(step.output), step.terms};
}

PlanDims DevicePhases::scope_of(const DevicePhase& phase, const DeviceStep& step) const {
  const DeviceLoops loops = loops_of(phase, step);
  PlanDims scope = loops.slices;
  scope.insert(scope.end(), loops.terms.begin(), loops.terms.end());
  scope.insert(scope.end(), loops.elements.begin(), loops.elements.end());
  return scope;
}

const DevicePhase* DevicePhases::maker_of(int32_t slot) const {
  const auto found = made_in_.find(slot);
  return found == made_in_.end() ? nullptr : found->second;
}

bool DevicePhases::is_linked(const DevicePhase& phase, const DeviceStep& step) const {
  const auto found = taken_in_.find(step.output);
  return found != taken_in_.end() && found->second != &phase;
}

void DevicePhases::add_step(DevicePhase& phase, int32_t number) {
  const PlanStep& step = plan_.steps[number];
  const bool reduces = !step.plates.empty();
  const int32_t output = static_cast<int32_t>(plan_.factors.size()) + number;
  phase.steps.push_back({number, step.inputs, output,
                         reduces ? slices_of(step.plates, phase.lane) : plan_.variables_in(step.variables), reduces});
}

void DevicePhases::collect_phases() {
  std::map<int32_t, std::unique_ptr<DevicePhase>> by_lane;
  auto rest = std::make_unique<DevicePhase>();
  const auto of_lane = [&](int32_t lane) -> DevicePhase& {
    if (lane < 0) return *rest;
    std::unique_ptr<DevicePhase>& phase = by_lane[lane];
    if (phase == nullptr) phase = std::make_unique<DevicePhase>();
    phase->lane = lane;
    return *phase;
  };
  // On a GPU lanes need not fill registers.
  const std::vector<Component> all = components(plan_, 1);
  for (size_t i = 0; i < all.size(); ++i) {
    const Component& component = all[i];
    for (int32_t number : component.lane_steps) {
      const bool reduces_lanes = holds(plan_.steps[number].plates, component.lane);
      add_step(reduces_lanes ? *rest : of_lane(component.lane), number);
    }
    for (int32_t number : component.rest_steps) add_step(*rest, number);
    if (!is_factor(component.result)) continue;
    const int32_t lane = component.result_has_lane ? component.lane : -1;
    of_lane(lane).steps.push_back({-1, {component.result}, slots() + static_cast<int32_t>(i), {}, false});
  }
  for (auto& [lane, phase] : by_lane) phases_.push_back(std::move(phase));
  phases_.push_back(std::move(rest));
  for (const auto& phase : phases_) {
    for (const DeviceStep& step : phase->steps) {
      made_in_[step.output] = phase.get();
      for (int32_t slot : step.inputs) taken_in_[slot] = phase.get();
    }
  }
  for (const auto& phase : phases_) {
    for (const DeviceStep& step : phase->steps) phase->linked = phase->linked || is_linked(*phase, step);
  }
}

// As late as possible: what a step takes in is made just before, so that little is kept at a time, and levels have
// about equally much to do.
void DevicePhases::find_levels(DevicePhase& phase) {
  std::map<int32_t, DeviceStep*> makers;
  int32_t depth = 0;
  std::sort(phase.steps.begin(), phase.steps.end(),
            [](const DeviceStep& a, const DeviceStep& b) { return a.output < b.output; });
  for (DeviceStep& step : phase.steps) {
    for (int32_t slot : step.inputs) {
      const auto found = makers.find(slot);
      if (found != makers.end()) step.level = std::max(step.level, found->second->level + 1);
    }
    makers[step.output] = &step;
    depth = std::max(depth, step.level + 1);
  }
  for (DeviceStep& step : phase.steps) step.level = depth - 1;
  for (auto step = phase.steps.rbegin(); step != phase.steps.rend(); ++step) {
    for (int32_t slot : step->inputs) {
      const auto found = makers.find(slot);
      if (found != makers.end()) found->second->level = std::min(found->second->level, step->level - 1);
    }
  }
  phase.levels.resize(static_cast<size_t>(depth));
  for (const DeviceStep& step : phase.steps) phase.levels[step.level].push_back(&step);
}

}  // namespace sumprod
