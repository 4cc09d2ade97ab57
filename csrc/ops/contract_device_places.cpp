#include "ops/contract_device_places.h"

#include <algorithm>
#include <utility>

#include "ops/contract_phase.h"

namespace sumprod {

namespace {

// Gives places in memory back to later messages of the same size.
class Places {
 public:
  int64_t take(int64_t size) {
    std::vector<int64_t>& left = left_[size];
    if (left.empty()) {
      const int64_t at = used;
      used += size;
      return at;
    }
    const int64_t at = left.back();
    left.pop_back();
    return at;
  }
  void leave(int64_t at, int64_t size) { left_[size].push_back(at); }
  int64_t used = 0;

 private:
  std::map<int64_t, std::vector<int64_t>> left_;
};

}  // namespace

DevicePlaces::DevicePlaces(const DevicePhases& phases, const DeviceCall& call, DeviceLevels& levels)
    : phases_(phases), plan_(phases.plan()), call_(call), numbers_(plan_), levels_(levels) {
  size_t at = 0;
  for (int32_t operand = 0; operand < plan_.operands; ++operand) {
    stride_at_.push_back(at);
    const auto use = std::find(plan_.operand_of.begin(), plan_.operand_of.end(), operand);
    at += plan_.factors[static_cast<size_t>(use - plan_.operand_of.begin())].size();
  }
  for (const auto& phase : phases.all()) choose_shape(*phase);
  place_results();
  for (const auto& phase : phases.all()) {
    place_values(*phase);
    if (call.pass == ContractPass::backward) place_gradients(*phase);
  }
}

void DevicePlaces::choose_shape(DevicePhase& phase) {
  std::vector<int64_t> work, outputs;
  int64_t kept = 0;
  for (const auto& level : phase.levels) {
    work.push_back(0);
    outputs.push_back(0);
    for (const DeviceStep* step : level) {
      const int64_t own = phases_.entries_of(phase, step->output);
      outputs.back() += own;
      work.back() += own * plan_.volume(step->terms);
      kept += own;
    }
  }
  const int64_t lanes = phase.lane < 0 ? 1 : plan_.sizes[phase.lane];
  phase.shape = levels_.shape(lanes, work, outputs, call_.pass == ContractPass::backward ? 2 * kept : kept);
}

DeviceLocation DevicePlaces::tensor(int64_t pointer, int32_t slot, const std::vector<int64_t>& strides) const {
  DeviceLocation at;
  at.pointer = pointer;
  at.is_wide = call_.is_double;
  const PlanDims& dims = phases_.dims_of(slot);
  for (size_t d = 0; d < dims.size(); ++d) {
    if (strides[d] >= 0) at.strides.emplace_back(dims[d], strides[d]);  // else broadcast
  }
  return at;
}

DeviceLocation DevicePlaces::factor(int32_t slot) const {
  const int32_t operand = plan_.operand_of[slot];
  const auto first = call_.strides.begin() + static_cast<std::ptrdiff_t>(stride_at_[operand]);
  return tensor(numbers_.operand(operand), slot,
                {first, first + static_cast<std::ptrdiff_t>(phases_.dims_of(slot).size())});
}

// A message between phases: all lanes of it.
DeviceLocation DevicePlaces::link(const DevicePhase& phase, int32_t slot) {
  PlanDims dims{phase.lane};
  const PlanDims slices = phases_.slices_of(phases_.dims_of(slot), phase.lane);
  dims.insert(dims.end(), slices.begin(), slices.end());
  dims.insert(dims.end(), phases_.order_of(slot).begin(), phases_.order_of(slot).end());
  DeviceLocation at;
  at.offset = levels_.allocate(plan_.volume(dims));
  at.strides = dense_strides(plan_, dims, 1);
  return at;
}

DeviceLocation DevicePlaces::row(const DevicePhase& phase, int32_t slot, int64_t at, int64_t row,
                                 bool in_shared) const {
  PlanDims dims = phases_.slices_of(phases_.dims_of(slot), phase.lane);
  dims.insert(dims.end(), phases_.order_of(slot).begin(), phases_.order_of(slot).end());
  DeviceLocation out;
  out.pointer = in_shared ? kSharedPointer : kScratchPointer;
  out.offset = at;
  out.in_row = true;
  out.row_stride = in_shared ? 0 : row;
  out.strides = dense_strides(plan_, dims, int64_t{1} << phase.shape.log_group);
  return out;
}

void DevicePlaces::place_rows(DevicePhase& phase, const std::map<int32_t, int64_t>& at, int64_t used, bool in_shared,
                              std::map<int32_t, DeviceLocation>& to) {
  const int64_t base = in_shared ? 0 : levels_.allocate(phase.shape.rows * used);
  if (in_shared) phase.shape.in_shared = (used + 1) / 2 * 2;
  for (const auto& [slot, own] : at) to[slot] = row(phase, slot, base + own, used, in_shared);
}

void DevicePlaces::place_results() {
  size_t stride = 0;
  for (size_t i = 0; i < plan_.results.size(); ++i) {
    const int32_t result = plan_.results[i];
    const int32_t slot = phases_.result_slot(static_cast<int32_t>(i));
    const int64_t pointer = numbers_.result(static_cast<int64_t>(i));
    if (call_.pass == ContractPass::backward) {
      const auto first = call_.result_strides.begin() + static_cast<std::ptrdiff_t>(stride);
      stride += phases_.dims_of(slot).size();
      gradients_[slot] =
          tensor(pointer, slot, {first, first + static_cast<std::ptrdiff_t>(phases_.dims_of(slot).size())});
    } else {
      values_[slot] = tensor(pointer, slot, contiguous_layout(plan_, result).strides);
    }
  }
}

void DevicePlaces::place_values(DevicePhase& phase) {
  const bool keeps = call_.pass != ContractPass::forward;
  Places places;
  std::map<int32_t, int64_t> at;
  const auto size_of = [&](int32_t slot) { return phases_.entries_of(phase, slot) << phase.shape.log_group; };
  for (const auto& level : phase.levels) {
    for (const DeviceStep* step : level) {
      if (values_.contains(step->output)) continue;
      if (phases_.is_linked(phase, *step)) {
        values_[step->output] = link(phase, step->output);
      } else {
        at[step->output] = places.take(size_of(step->output));
      }
    }
    // In forward passes, what has been taken in makes room for others.
    for (const DeviceStep* step : level) {
      for (int32_t slot : step->inputs) {
        if (!keeps && at.contains(slot)) places.leave(at[slot], size_of(slot));
      }
    }
  }
  place_rows(phase, at, places.used, !keeps && !phase.shape.splits && places.used <= ContractCrossovers::kSharedEntries,
             values_);
}

void DevicePlaces::place_gradients(DevicePhase& phase) {
  Places places;
  std::map<int32_t, int64_t> at;
  const auto size_of = [&](int32_t slot) { return phases_.entries_of(phase, slot) << phase.shape.log_group; };
  for (auto level = phase.levels.rbegin(); level != phase.levels.rend(); ++level) {
    for (const DeviceStep* step : *level) {
      for (int32_t slot : step->inputs) {
        const DevicePhase* maker = phases_.maker_of(slot);
        if (maker == nullptr) continue;  // a factor
        if (maker == &phase) {
          at[slot] = places.take(size_of(slot));
        } else {
          gradients_[slot] = link(*maker, slot);
        }
      }
    }
    for (const DeviceStep* step : *level) {
      if (at.contains(step->output)) places.leave(at[step->output], size_of(step->output));
    }
  }
  place_rows(phase, at, places.used, !phase.shape.splits && places.used <= ContractCrossovers::kSharedEntries,
             gradients_);
}

DeviceLocation DevicePlaces::factor_gradient(const DevicePhase& phase, int32_t slot) const {
  const int32_t operand = plan_.operand_of[slot];
  const DeviceLocation data = factor(slot);
  std::vector<bool> broadcast;
  for (int32_t dim : phases_.dims_of(slot)) broadcast.push_back(!data.has(dim));
  const SlotLayout layout = contiguous_layout(plan_, slot, broadcast);
  std::vector<int64_t> strides;
  for (size_t d = 0; d < broadcast.size(); ++d) strides.push_back(broadcast[d] ? -1 : layout.strides[d]);
  DeviceLocation target = tensor(numbers_.gradient(operand), slot, strides);
  if (!sums_lanes(phase, slot)) return target;
  // The lanes of a group, and the blocks, have sums of their own.
  const DeviceLocation& sums = phase.sums.at(operand);
  for (auto& [dim, stride] : target.strides) stride <<= phase.shape.log_group;
  target.pointer = sums.pointer;
  target.offset = sums.offset;
  target.is_wide = target.in_row = true;
  target.row_stride = sums.row_stride;
  return target;
}

std::vector<int32_t> DevicePlaces::place_sums() {
  std::vector<int32_t> places(static_cast<size_t>(plan_.operands), 0);
  std::vector<std::pair<DevicePhase*, int32_t>> summed;
  for (const auto& phase : phases_.all()) {
    for (const DeviceStep& step : phase->steps) {
      for (int32_t slot : step.inputs) {
        if (!phases_.is_factor(slot)) continue;
        const int32_t operand = plan_.operand_of[slot];
        const bool sums = sums_lanes(*phase, slot);
        const bool known = sums && phase->sums.contains(operand);
        places[operand] += known ? 0 : 1;
        if (!sums || known) continue;
        phase->sums[operand] = {};
        summed.emplace_back(phase.get(), slot);
      }
    }
  }
  for (const auto& [phase, slot] : summed) {
    DeviceLocation& own = phase->sums[plan_.operand_of[slot]];
    own.row_stride = int64_t{1} << phase->shape.log_group;
    for (const auto& [dim, stride] : factor(slot).strides) own.row_stride *= plan_.sizes[dim];
    own.offset = levels_.allocate(phase->shape.rows * own.row_stride);
  }
  return places;
}

}  // namespace sumprod
