// Where the kernels of `contract` find entries: dims and strides, turned into axes.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "ops/contract_device.h"
#include "ops/contract_plan.h"

namespace sumprod {

// A tensor, or a part of scratch memory.
struct DeviceLocation {
  int64_t pointer = kScratchPointer, offset = 0;
  std::vector<std::pair<int32_t, int64_t>> strides;  // of the dims that it has positions for
  bool is_wide = true;
  // Each block has its own, and in it the lanes of a group lie side by side.
  bool in_row = false;
  int64_t row_stride = 0;

  bool has(int32_t dim) const;
  int64_t stride_of(int32_t dim) const;  // 0 where it has none
};

// The dims that an operation runs along.
struct DeviceLoops {
  std::vector<int32_t> slices, elements, terms;
};

// Adds rows of strides for dims that lie side by side, the last one `innermost` apart.
std::vector<std::pair<int32_t, int64_t>> dense_strides(const PlanProgram& program, const std::vector<int32_t>& dims,
                                                       int64_t innermost);

// Makes axes; what no stride describes goes to a table, each once.
class DeviceAxes {
 public:
  explicit DeviceAxes(const PlanProgram& program) : program_(program) {}

  DeviceAxis axis(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);
  // `lane` is the lane plate or -1, and a group has 1 << log_group lanes.
  DeviceOperand operand(const DeviceLocation& at, const DeviceLoops& loops, int32_t lane, int32_t log_group);
  std::vector<int64_t> tables;

 private:
  const PlanProgram& program_;
  std::map<std::vector<int64_t>, int64_t> known_;
};

inline bool varies(const DeviceAxis& axis) { return axis.table >= 0 || axis.stride != 0; }

}  // namespace sumprod
