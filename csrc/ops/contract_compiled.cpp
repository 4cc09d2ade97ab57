#include "ops/contract_compiled.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include <torch/csrc/stable/library.h>

#include "core/isa.h"

namespace sumprod {

namespace {

constexpr size_t kKeptPlans = 256;
constexpr size_t kKeptViews = 4;

std::vector<SlotLayout> unpacked(const CompiledPlan& plan, const OperandLayouts& layouts) {
  std::vector<SlotLayout> out;
  auto stride = layouts.strides.begin();
  for (int32_t operand = 0; operand < plan.program().operands; ++operand) {
    SlotLayout& layout = out.emplace_back();
    for (size_t d = 0; d < plan.operand_dims(operand).size(); ++d, ++stride) {
      layout.broadcast.push_back(*stride == OperandLayouts::kBroadcast);
      layout.strides.push_back(layout.broadcast.back() ? 0 : *stride);
    }
  }
  return out;
}

// Finds the operands whose gradients are added up from several places, and tells those places.
void settle_additions(const CompiledPlan& plan, CompiledViews& views) {
  std::vector<int32_t> places(static_cast<size_t>(plan.program().operands), 0);
  const auto each_place = [&](auto f) {
    for (size_t i = 0; i < plan.components().size(); ++i) {
      for (const bool inner : {true, false}) {
        const auto& phase = inner ? plan.components()[i].inner : plan.components()[i].outer;
        const auto& own = inner ? views.components[i].inner : views.components[i].outer;
        for (size_t n = 0; phase != nullptr && n < own->factors.size(); ++n) {
          const int32_t slot = phase->inputs()[n].slot;
          if (slot >= static_cast<int32_t>(plan.program().factors.size())) continue;
          const int32_t shared = own->factors[n].shared;
          // Shared factors are one place, however many steps take them in.
          if (shared >= 0 && own->shared[shared].factor != static_cast<int32_t>(n)) continue;
          bool& adds = shared >= 0 ? own->shared[shared].adds : own->factors[n].adds;
          f(plan.program().operand_of[slot], adds);
        }
      }
    }
  };
  each_place([&](int32_t operand, bool& adds) { places[operand] += adds ? 2 : 1; });
  for (const int32_t count : places) views.adds.push_back(count > 1);
  each_place([&](int32_t operand, bool& adds) { adds = views.adds[operand]; });
}

}  // namespace

CompiledPlan::CompiledPlan(const std::string& encoded) : program_(encoded) {
  const int32_t none = -1;
  first_use_.resize(static_cast<size_t>(program_.operands), none);
  for (size_t factor = 0; factor < program_.factors.size(); ++factor) {
    const int32_t operand = program_.operand_of[factor];
    if (first_use_[operand] == none) first_use_[operand] = static_cast<int32_t>(factor);
    STD_TORCH_CHECK(program_.shape_of(static_cast<int32_t>(factor)) == program_.shape_of(first_use_[operand]),
                    "sumprod::contract: places ", first_use_[operand], " and ", factor,
                    " of the plan are one tensor, but their shapes differ");
  }
  STD_TORCH_CHECK(std::find(first_use_.begin(), first_use_.end(), none) == first_use_.end(),
                  "sumprod::contract: the plan leaves out an operand");
}

const std::vector<CompiledComponent>& CompiledPlan::components() const {
  std::call_once(has_components_, [this] {
    const int width = vector_bytes(isa_in_use()) / static_cast<int>(sizeof(float));
    for (Component& component : sumprod::components(program_, width)) {
      CompiledComponent& compiled = components_.emplace_back();
      if (component.lane >= 0) {
        compiled.inner = std::make_unique<PhaseProgram>(
            program_, component.lane_steps, component.result_has_lane ? component.result : -1, component.lane);
      }
      if (!component.result_has_lane) {
        compiled.outer = std::make_unique<PhaseProgram>(program_, component.rest_steps, component.result, -1);
      }
      compiled.component = std::move(component);
    }
  });
  return components_;
}

std::shared_ptr<const CompiledViews> CompiledPlan::views(OperandLayouts layouts, bool with_gradients) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& known : recent_) {
    if (known->with_gradients == with_gradients && known->layouts == layouts) return known;
  }
  auto made = std::make_shared<CompiledViews>();
  const std::vector<SlotLayout> operands = unpacked(*this, layouts);
  for (const CompiledComponent& compiled : components()) {
    const auto make = [&](const std::unique_ptr<PhaseProgram>& phase) {
      return phase == nullptr ? nullptr
                              : std::make_unique<PhaseViews>(*phase, operands, layouts.is_double, with_gradients);
    };
    made->components.push_back({make(compiled.inner), make(compiled.outer)});
  }
  settle_additions(*this, *made);
  made->layouts = std::move(layouts);
  made->with_gradients = with_gradients;
  if (recent_.size() >= kKeptViews) recent_.erase(recent_.begin());
  recent_.push_back(made);
  return made;
}

std::shared_ptr<const CompiledPlan> compiled_plan(const std::string& encoded) {
  struct Kept {
    std::shared_ptr<const CompiledPlan> plan;
    int64_t last_use;
  };
  static std::mutex mutex;
  static std::unordered_map<std::string, Kept> known;
  static int64_t clock = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(encoded);
  if (found != known.end()) {
    found->second.last_use = ++clock;
    return found->second.plan;
  }
  auto plan = std::make_shared<const CompiledPlan>(encoded);
  if (known.size() >= kKeptPlans) {
    known.erase(std::min_element(known.begin(), known.end(),
                                 [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; }));
  }
  known.emplace(encoded, Kept{plan, ++clock});
  return plan;
}

}  // namespace sumprod
