// Puts operations into levels, and levels into launches.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ops/contract_device_program.h"

namespace sumprod {

// Choices between ways to run a phase.
// Estimated; to be measured on a GPU.
struct ContractCrossovers {
  static constexpr int64_t kGroupOutputs = 128;                 // outputs per level that a group of lanes should have
  static constexpr int64_t kBlocksPerMultiprocessor = 8;        // at most, each with scratch memory of its own
  static constexpr int64_t kMostRowEntries = int64_t{1} << 27;  // of scratch memory in all rows: 1 GB
  static constexpr int64_t kTermsPerThread = 8;                 // in a level; decides the size of blocks
  static constexpr int64_t kWideWork = int64_t{1} << 17;        // terms in a level from which several blocks share it
  static constexpr int64_t kPartWork = int64_t{1} << 12;        // and as many for each
  static constexpr int64_t kLongTerms = 4096;  // terms of one output that are worth to be cut into chunks
  static constexpr int64_t kChunkTerms = 1024;
  static constexpr int64_t kMostLevelOps = 64;
  static constexpr int64_t kSharedEntries = 3072;     // of messages kept in shared memory: 24 KB
  static constexpr int64_t kFetchedBytes = 8 * 1024;  // room for a level in shared memory, twice
};

// An operation before it has its place.
struct PendingOp {
  DeviceOp op{};
  std::vector<DeviceOperand> operands;
  int64_t sums_into = -1;  // operations with the same number must not be in one level
};

// How a phase is run.
struct PhaseShape {
  int64_t lanes = 1, groups = 1, rows = 1;
  int32_t log_group = 0, warps = 2;
  bool splits = false;  // levels with much work are launches of several blocks per group
  int64_t in_shared = 0;
};

class DeviceLevels {
 public:
  DeviceLevels(DeviceProgram& program, int multiprocessors) : to_(program), multiprocessors_(multiprocessors) {}

  // `work` has the terms, and `outputs` the outputs, of each level and lane. `row_entries` is what a lane needs of
  // scratch memory.
  PhaseShape shape(int64_t lanes, const std::vector<int64_t>& work, const std::vector<int64_t>& outputs,
                   int64_t row_entries) const;
  // Entries of scratch memory; returns where they are.
  int64_t allocate(int64_t entries);
  // Operations that do not depend on each other become one level, or several if they must.
  void add(const PhaseShape& shape, std::vector<PendingOp> ops);
  int32_t count() const { return static_cast<int32_t>(to_.levels.size()); }
  // Launches of the levels [first, end).
  void launch(const PhaseShape& shape, int32_t first, int32_t end);

 private:
  void cut_long(const PhaseShape& shape, PendingOp& pending, std::vector<PendingOp>& after);
  void add_level(const PhaseShape& shape, std::vector<PendingOp>& ops);

  DeviceProgram& to_;
  const int multiprocessors_;
  std::vector<int32_t> parts_;  // of each level
};

}  // namespace sumprod
