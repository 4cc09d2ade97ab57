// Plans made ready for the kernels, kept for the next call with the same plan.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ops/contract_phase.h"
#include "ops/contract_plan.h"

namespace sumprod {

// What a connected component consists of; a phase that does nothing is null.
struct CompiledComponent {
  Component component;
  std::unique_ptr<PhaseProgram> inner, outer;
};

// How all operands lie in memory: the strides of each one's dims in turn, kBroadcast where it is broadcast.
struct OperandLayouts {
  static constexpr int64_t kBroadcast = -1;
  std::vector<int64_t> strides;
  bool is_double = false;
  bool operator==(const OperandLayouts&) const = default;
};

struct ComponentViews {
  std::unique_ptr<PhaseViews> inner, outer;
};

struct CompiledViews {
  OperandLayouts layouts;
  bool with_gradients = false;
  std::vector<ComponentViews> components;
  // Of each operand, whether its gradient is added up from several places; otherwise every element is written once.
  std::vector<bool> adds;
};

class CompiledPlan {
 public:
  explicit CompiledPlan(const std::string& encoded);
  CompiledPlan(const CompiledPlan&) = delete;

  const PlanProgram& program() const { return program_; }
  // For the CPU; made when first asked for.
  const std::vector<CompiledComponent>& components() const;
  // The dims of an operand, as those of the first factor that it is.
  const std::vector<int32_t>& operand_dims(int32_t operand) const { return program_.factors[first_use_[operand]]; }
  std::shared_ptr<const CompiledViews> views(OperandLayouts layouts, bool with_gradients) const;

 private:
  const PlanProgram program_;
  mutable std::once_flag has_components_;
  mutable std::vector<CompiledComponent> components_;
  std::vector<int32_t> first_use_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<const CompiledViews>> recent_;
};

// The same object for the same plan, as long as it is among the last few hundred.
std::shared_ptr<const CompiledPlan> compiled_plan(const std::string& encoded);

}  // namespace sumprod
