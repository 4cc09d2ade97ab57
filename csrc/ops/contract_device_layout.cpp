#include "ops/contract_device_layout.h"

#include <algorithm>

#include "ops/contract_phase.h"

namespace sumprod {

bool DeviceLocation::has(int32_t dim) const {
  return std::any_of(strides.begin(), strides.end(), [dim](const auto& own) { return own.first == dim; });
}

int64_t DeviceLocation::stride_of(int32_t dim) const {
  for (const auto& [own, stride] : strides) {
    if (own == dim) return stride;
  }
  return 0;
}

std::vector<std::pair<int32_t, int64_t>> dense_strides(const PlanProgram& program, const std::vector<int32_t>& dims,
                                                       int64_t innermost) {
  std::vector<std::pair<int32_t, int64_t>> out;
  for (size_t d = dims.size(); d-- > 0; innermost *= program.sizes[dims[d]]) out.emplace_back(dims[d], innermost);
  return out;
}

DeviceAxis DeviceAxes::axis(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  // Neighbouring dims are one where the outer one goes on from the end of the inner one.
  std::vector<int64_t> merged_sizes, merged_strides;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return {0, -1};
    if (sizes[d] == 1) continue;
    if (!merged_sizes.empty() && merged_strides.back() == strides[d] * sizes[d]) {
      merged_sizes.back() *= sizes[d];
      merged_strides.back() = strides[d];
      continue;
    }
    merged_sizes.push_back(sizes[d]);
    merged_strides.push_back(strides[d]);
  }
  if (merged_sizes.empty()) return {0, -1};
  if (merged_sizes.size() == 1) return {merged_strides.front(), -1};
  std::vector<int64_t> key = merged_sizes;
  key.insert(key.end(), merged_strides.begin(), merged_strides.end());
  const auto [found, is_new] = known_.try_emplace(std::move(key), static_cast<int64_t>(tables.size()));
  if (is_new) {
    const std::vector<int64_t> table = distances<int64_t>(merged_sizes, merged_strides);
    tables.insert(tables.end(), table.begin(), table.end());
  }
  return {0, found->second};
}

DeviceOperand DeviceAxes::operand(const DeviceLocation& at, const DeviceLoops& loops, int32_t lane, int32_t log_group) {
  const auto axis_of = [&](const std::vector<int32_t>& dims) {
    std::vector<int64_t> sizes, strides;
    for (int32_t dim : dims) {
      sizes.push_back(program_.sizes[dim]);
      strides.push_back(at.stride_of(dim));
    }
    return axis(sizes, strides);
  };
  DeviceOperand out{};
  out.base = at.pointer;
  out.offset = at.offset;
  out.row_stride = at.row_stride;
  out.lane_stride = at.in_row ? 1 : lane < 0 ? 0 : at.stride_of(lane);
  out.group_stride = at.in_row ? 0 : out.lane_stride << log_group;
  out.slice = axis_of(loops.slices);
  out.element = axis_of(loops.elements);
  out.term = axis_of(loops.terms);
  out.is_wide = at.is_wide ? 1 : 0;
  return out;
}

}  // namespace sumprod
