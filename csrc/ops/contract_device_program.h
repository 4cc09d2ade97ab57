// Makes the lists of contract_device.h: plain C++, no data, once per plan and layout of tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/contract_device.h"
#include "ops/contract_plan.h"

namespace sumprod {

enum class ContractPass { forward, backward, draw };

// What a program depends on besides the plan.
struct DeviceCall {
  ContractPass pass = ContractPass::forward;
  bool is_double = false;
  bool max_plus = false;                // the largest instead of the sum; of a draw: the most probable values
  std::vector<int64_t> strides;         // of the operands, as in OperandLayouts
  std::vector<int64_t> result_strides;  // of the results' gradients, one after the other
  int multiprocessors = 1;
  bool operator==(const DeviceCall&) const = default;
};

// Numbers of the pointers that a program wants: scratch memory, then these.
class PointerNumbers {
 public:
  explicit PointerNumbers(const PlanProgram& program)
      : operands_(program.operands), results_(static_cast<int64_t>(program.results.size())) {}

  int64_t operand(int64_t i) const { return 1 + i; }
  // The results, or in a backward pass their gradients.
  int64_t result(int64_t i) const { return 1 + operands_ + i; }
  int64_t gradient(int64_t operand) const { return rest() + operand; }
  int64_t uniforms() const { return rest(); }
  int64_t values(int64_t dim) const { return rest() + 1 + dim; }
  int64_t count(ContractPass pass, int64_t dims) const {
    return rest() + (pass == ContractPass::backward ? operands_ : pass == ContractPass::draw ? 1 + dims : 0);
  }

 private:
  int64_t rest() const { return 1 + operands_ + results_; }
  int64_t operands_, results_;
};

struct DeviceProgram {
  std::vector<DeviceLevel> levels;
  std::vector<DeviceOp> ops;
  std::vector<DeviceOperand> operands;
  std::vector<int64_t> tables;
  std::vector<DeviceSpan> spans;        // run one after the other
  int64_t scratch = 0;                  // entries of 8 bytes
  int64_t cleared_at = 0, cleared = 0;  // of these, those that must be zero at first
  // Of each operand, whether its gradient is added up, so that it must be zero at first.
  std::vector<bool> adds;
};

DeviceProgram device_program(const PlanProgram& program, const DeviceCall& call);

}  // namespace sumprod
