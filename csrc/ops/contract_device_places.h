// Where the messages of a device program, and their gradients, are.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "ops/contract_device_levels.h"
#include "ops/contract_device_phases.h"

namespace sumprod {

class DevicePlaces {
 public:
  // Takes scratch memory from `levels`; decides how phases are run.
  DevicePlaces(const DevicePhases& phases, const DeviceCall& call, DeviceLevels& levels);

  // Of a factor or a message; and of a message's gradient.
  DeviceLocation value_of(int32_t slot) const { return phases_.is_factor(slot) ? factor(slot) : values_.at(slot); }
  const DeviceLocation& gradient_of(int32_t slot) const { return gradients_.at(slot); }
  // Of the gradient of a factor: in its tensor, or, where the lanes of a phase have no positions of their own, in
  // sums that each block has for itself.
  DeviceLocation factor_gradient(const DevicePhase& phase, int32_t slot) const;
  bool sums_lanes(const DevicePhase& phase, int32_t slot) const {
    return phase.lane >= 0 && !factor(slot).has(phase.lane);
  }
  // Room for such sums; returns how often each operand's gradient is added to.
  std::vector<int32_t> place_sums();

 private:
  DeviceLocation factor(int32_t slot) const;
  DeviceLocation tensor(int64_t pointer, int32_t slot, const std::vector<int64_t>& strides) const;
  DeviceLocation link(const DevicePhase& phase, int32_t slot);
  DeviceLocation row(const DevicePhase& phase, int32_t slot, int64_t at, int64_t row, bool in_shared) const;
  void choose_shape(DevicePhase& phase);
  void place_results();
  void place_values(DevicePhase& phase);
  void place_gradients(DevicePhase& phase);
  void place_rows(DevicePhase& phase, const std::map<int32_t, int64_t>& at, int64_t used, bool in_shared,
                  std::map<int32_t, DeviceLocation>& to);

  const DevicePhases& phases_;
  const PlanProgram& plan_;
  const DeviceCall& call_;
  const PointerNumbers numbers_;
  DeviceLevels& levels_;
  std::map<int32_t, DeviceLocation> values_, gradients_;  // by slot: of outputs of steps
  std::vector<size_t> stride_at_;                         // of each operand, in call.strides
};

}  // namespace sumprod
