// The steps of a plan as GPUs run them: in phases, each of levels of steps that do not depend on each other.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "ops/contract_device_layout.h"
#include "ops/contract_device_levels.h"
#include "ops/contract_plan.h"

namespace sumprod {

using PlanDims = std::vector<int32_t>;

// A step of the plan, or one that hands a factor on as a result.
struct DeviceStep {
  int32_t number;  // in the plan, or -1
  std::vector<int32_t> inputs;
  int32_t output;  // a slot
  PlanDims terms;  // the dims that are summed out, or the plates that are reduced
  bool reduces;
  int32_t level = 0;
};

// The steps that have one lane plate, of all components; or those that have none.
struct DevicePhase {
  int32_t lane = -1;
  std::vector<DeviceStep> steps;
  std::vector<std::vector<const DeviceStep*>> levels;
  bool linked = false;  // some of its messages are taken in by the steps without lanes
  PhaseShape shape;
  std::map<int32_t, DeviceLocation> sums;  // of gradients over lanes: of each operand, for each block
  // Numbers of levels in the program: forward, then the way back.
  int32_t forward_first = 0, forward_end = 0, backward_end = 0;
};

class DevicePhases {
 public:
  explicit DevicePhases(const PlanProgram& plan);

  const PlanProgram& plan() const { return plan_; }
  // The last one has no lanes.
  const std::vector<std::unique_ptr<DevicePhase>>& all() const { return phases_; }

  bool is_factor(int32_t slot) const { return slot < static_cast<int32_t>(plan_.factors.size()); }
  // What the step that gives a result is called; slots after those of the plan are results that are factors.
  int32_t result_slot(int32_t result) const {
    return is_factor(plan_.results[result]) ? slots() + result : plan_.results[result];
  }
  const PlanDims& dims_of(int32_t slot) const { return plan_.dims_of(original(slot)); }
  const PlanDims& order_of(int32_t slot) const { return plan_.order[original(slot)]; }
  PlanDims slices_of(const PlanDims& dims, int32_t lane) const;
  // All dims of a step, but the lane plate.
  PlanDims scope_of(const DevicePhase& phase, const DeviceStep& step) const;
  DeviceLoops loops_of(const DevicePhase& phase, const DeviceStep& step) const;
  // Entries of a message in one lane.
  int64_t entries_of(const DevicePhase& phase, int32_t slot) const {
    return plan_.volume(slices_of(dims_of(slot), phase.lane)) * plan_.volume(order_of(slot));
  }
  // The phase that makes a slot; null for factors.
  const DevicePhase* maker_of(int32_t slot) const;
  // Whether another phase takes in what a step makes.
  bool is_linked(const DevicePhase& phase, const DeviceStep& step) const;

 private:
  int32_t slots() const { return static_cast<int32_t>(plan_.factors.size() + plan_.steps.size()); }
  int32_t original(int32_t slot) const { return slot < slots() ? slot : plan_.results[slot - slots()]; }
  void collect_phases();
  void add_step(DevicePhase& phase, int32_t number);
  void find_levels(DevicePhase& phase);

  const PlanProgram& plan_;
  std::vector<std::unique_ptr<DevicePhase>> phases_;
  std::map<int32_t, const DevicePhase*> made_in_, taken_in_;  // by slot
};

}  // namespace sumprod
