// The operators of contract.cpp for GPUs: a device program (contract_device_program.h), made and copied to the GPU
// once for a plan and a layout of tensors, run on new addresses in each call.
//
// CUDA graphs: a call can be captured when one with the same plan and layout has run on that device before, so that
// the program is there already; what a graph uses is never freed.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/contract_compiled.h"
#include "ops/contract_device_program.h"
#include "ops/contract_tensors.h"
#include "ops/gpu_call.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

constexpr size_t kKeptPlans = 256;
constexpr size_t kKeptPrograms = 8;  // of each plan

// Adds a list to what is copied; returns where.
template <class T>
size_t append(std::string& bytes, const std::vector<T>& list) {
  const size_t at = bytes.size();
  bytes.append(reinterpret_cast<const char*>(list.data()), list.size() * sizeof(T));
  bytes.resize((bytes.size() + 15) / 16 * 16);
  return at;
}

// A program on a GPU.
class LoadedProgram {
 public:
  LoadedProgram(const PlanProgram& plan, DeviceCall call, const GpuCall& gpu)
      : call_(std::move(call)), stream_(gpu.stream()), program_(device_program(plan, call_)) {
    std::string bytes;
    const size_t levels = append(bytes, program_.levels), ops = append(bytes, program_.ops),
                 operands = append(bytes, program_.operands), tables = append(bytes, program_.tables);
    memory_ = gpu.scratch(static_cast<int64_t>(bytes.size()));
    auto* base = static_cast<unsigned char*>(memory_->mutable_data_ptr());
    contract_upload_cuda(base, bytes.data(), static_cast<int64_t>(bytes.size()), stream_);
    tables_ = {reinterpret_cast<const DeviceLevel*>(base + levels), reinterpret_cast<const DeviceOp*>(base + ops),
               reinterpret_cast<const DeviceOperand*>(base + operands), reinterpret_cast<const int64_t*>(base + tables),
               nullptr};
    program_.levels = {};
    program_.ops = {};
    program_.operands = {};
    program_.tables = {};
  }

  bool serves(const DeviceCall& call, const gpu::Stream& stream, bool capturing) const {
    return stream.device == stream_.device && (capturing || stream.handle == stream_.handle) && call == call_;
  }
  const std::vector<bool>& adds() const { return program_.adds; }

  void run(const GpuCall& gpu, std::vector<void*> pointers) const {
    const int64_t scratch = program_.scratch * 8;
    const auto count = static_cast<int64_t>(pointers.size());
    const Tensor memory = gpu.scratch(scratch + count * 8);
    auto* base = static_cast<unsigned char*>(memory.mutable_data_ptr());
    pointers[kScratchPointer] = base;
    auto** table = reinterpret_cast<void**>(base + scratch);
    contract_store_pointers_cuda(pointers.data(), count, table, gpu.stream());
    contract_clear_cuda(base + program_.cleared_at * 8, program_.cleared * 8, gpu.stream());
    DeviceTables tables = tables_;
    tables.pointers = table;
    for (const DeviceSpan& span : program_.spans) contract_run_cuda(tables, span, call_.is_double, gpu.stream());
  }

 private:
  const DeviceCall call_;
  const gpu::Stream stream_;  // on which the program was copied, and its memory is given back
  DeviceProgram program_;
  std::optional<Tensor> memory_;
  DeviceTables tables_{};
};

// Never destroyed: at the end of a process there may be no CUDA any more.
class Programs {
 public:
  static Programs& all() {
    static Programs& programs = *new Programs;
    return programs;
  }

  std::shared_ptr<const LoadedProgram> find(const std::shared_ptr<const CompiledPlan>& plan, DeviceCall call,
                                            const GpuCall& gpu) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool capturing = gpu::is_capturing(gpu.stream());
    Kept& kept = of(plan);
    for (const auto& known : kept.programs) {
      if (!known->serves(call, gpu.stream(), capturing)) continue;
      if (capturing && std::find(captured_.begin(), captured_.end(), known) == captured_.end()) {
        captured_.push_back(known);
      }
      return known;
    }
    STD_TORCH_CHECK(!capturing,
                    "sumprod::contract: a contraction that is captured in a CUDA graph must have run before, with the "
                    "same shapes and strides: run the code once outside of the graph first");
    if (kept.programs.size() >= kKeptPrograms) kept.programs.erase(kept.programs.begin());
    return kept.programs.emplace_back(std::make_shared<const LoadedProgram>(plan->program(), std::move(call), gpu));
  }

 private:
  struct Kept {
    std::shared_ptr<const CompiledPlan> plan;
    std::vector<std::shared_ptr<const LoadedProgram>> programs;
    int64_t last_use = 0;
  };

  Kept& of(const std::shared_ptr<const CompiledPlan>& plan) {
    if (known_.size() >= kKeptPlans && !known_.contains(plan.get())) {
      known_.erase(std::min_element(known_.begin(), known_.end(), [](const auto& a, const auto& b) {
        return a.second.last_use < b.second.last_use;
      }));
    }
    Kept& kept = known_[plan.get()];
    kept.plan = plan;
    kept.last_use = ++clock_;
    return kept;
  }

  std::mutex mutex_;
  int64_t clock_ = 0;
  std::map<const CompiledPlan*, Kept> known_;
  std::vector<std::shared_ptr<const LoadedProgram>> captured_;
};

// One call of an operator: its plan, and the addresses that its program wants.
class PlannedCall {
 public:
  PlannedCall(const std::string& encoded, const std::vector<Tensor>& factors, ContractPass pass, bool max_plus)
      : plan_(compiled_plan(encoded)), factors_(factors), numbers_(plan_->program()) {
    OperandLayouts layouts = checked_layouts(*plan_, factors);
    for (const Tensor& factor : factors) {
      STD_TORCH_CHECK(factor.is_cuda() == factors.front().is_cuda() &&
                          factor.get_device_index() == factors.front().get_device_index(),
                      "sumprod::contract: factors must be on one device");
    }
    gpu_.emplace(factors.front());
    call_.pass = pass;
    call_.max_plus = max_plus;
    call_.is_double = layouts.is_double;
    call_.strides = std::move(layouts.strides);
    call_.multiprocessors = gpu_->properties().multiprocessors;
    pointers_.resize(static_cast<size_t>(numbers_.count(pass, static_cast<int64_t>(program().sizes.size()))), nullptr);
    for (size_t i = 0; i < factors.size(); ++i) {
      set(numbers_.operand(static_cast<int64_t>(i)), const_cast<void*>(factors[i].const_data_ptr()));
    }
  }

  const PlanProgram& program() const { return plan_->program(); }
  const PointerNumbers& numbers() const { return numbers_; }
  DeviceCall& call() { return call_; }
  void set(int64_t number, void* pointer) { pointers_[static_cast<size_t>(number)] = pointer; }

  std::vector<Tensor> new_results() {
    std::vector<Tensor> results;
    for (const int32_t slot : program().results) {
      results.push_back(empty_result(program(), slot, factors_.front()));
      set(numbers_.result(static_cast<int64_t>(results.size()) - 1), results.back().mutable_data_ptr());
    }
    return results;
  }
  // After call() is complete.
  const LoadedProgram& loaded() {
    if (loaded_ == nullptr) loaded_ = Programs::all().find(plan_, call_, *gpu_);
    return *loaded_;
  }
  void run() { loaded().run(*gpu_, std::move(pointers_)); }

 private:
  const std::shared_ptr<const CompiledPlan> plan_;
  const std::vector<Tensor>& factors_;
  const PointerNumbers numbers_;
  std::optional<GpuCall> gpu_;
  DeviceCall call_;
  std::vector<void*> pointers_;
  std::shared_ptr<const LoadedProgram> loaded_;
};

std::vector<Tensor> contract(std::vector<Tensor> factors, std::string encoded, bool max_plus) {
  PlannedCall call(encoded, factors, ContractPass::forward, max_plus);
  std::vector<Tensor> results = call.new_results();
  call.run();
  return results;
}

std::vector<Tensor> contract_backward(std::vector<Tensor> grads, std::vector<Tensor> factors, std::string encoded) {
  PlannedCall call(encoded, factors, ContractPass::backward, false);
  check_result_gradients(call.program(), grads, factors.front());
  for (size_t i = 0; i < grads.size(); ++i) {
    const auto strides = grads[i].strides();
    call.call().result_strides.insert(call.call().result_strides.end(), strides.begin(), strides.end());
    call.set(call.numbers().result(static_cast<int64_t>(i)), const_cast<void*>(grads[i].const_data_ptr()));
  }
  std::vector<Tensor> factor_grads;
  for (size_t i = 0; i < factors.size(); ++i) {
    factor_grads.push_back(new_gradient(factors[i], call.loaded().adds()[i]));
    call.set(call.numbers().gradient(static_cast<int64_t>(i)), factor_grads.back().mutable_data_ptr());
  }
  call.run();
  return factor_grads;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> contract_draw(std::vector<Tensor> factors, std::string encoded,
                                                                   std::optional<Tensor> uniforms, bool maximise) {
  PlannedCall call(encoded, factors, ContractPass::draw, maximise);
  DrawTensors draws(call.program(), factors.front(), uniforms, maximise);
  std::vector<Tensor> results = call.new_results();
  if (!maximise) call.set(call.numbers().uniforms(), const_cast<void*>(uniforms->const_data_ptr()));
  for (size_t v = 0; v < draws.values.size(); ++v) {
    call.set(call.numbers().values(draws.variables[v]), draws.values[v].mutable_data_ptr());
  }
  call.run();
  return {results, draws.values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) {
  m.impl("contract", TORCH_BOX(&contract));
  m.impl("contract_backward", TORCH_BOX(&contract_backward));
  m.impl("contract_draw", TORCH_BOX(&contract_draw));
}

}  // namespace sumprod
