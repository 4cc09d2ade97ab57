#include "ops/contract_device_levels.h"

#include <algorithm>
#include <map>

namespace sumprod {

namespace {

using Limits = ContractCrossovers;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

PhaseShape DeviceLevels::shape(int64_t lanes, const std::vector<int64_t>& work, const std::vector<int64_t>& outputs,
                               int64_t row_entries) const {
  PhaseShape shape;
  shape.lanes = lanes;
  int64_t all_outputs = 0, most_work = 0;
  for (const int64_t count : outputs) all_outputs += count;
  for (const int64_t count : work) most_work = std::max(most_work, count);
  const int64_t mean = divide_up(all_outputs, std::max<int64_t>(1, static_cast<int64_t>(outputs.size())));
  while ((mean << shape.log_group) < Limits::kGroupOutputs && shape.log_group < 8 &&
         (lanes >> (shape.log_group + 1)) >= 2 * multiprocessors_) {
    ++shape.log_group;
  }
  shape.groups = divide_up(lanes, int64_t{1} << shape.log_group);
  const int64_t fit = Limits::kMostRowEntries / std::max<int64_t>(1, row_entries << shape.log_group);
  shape.rows = std::min({shape.groups, Limits::kBlocksPerMultiprocessor * multiprocessors_, std::max<int64_t>(1, fit)});
  const int64_t threads = divide_up(most_work << shape.log_group, Limits::kTermsPerThread);
  const int64_t most = shape.rows > 2 * multiprocessors_ ? kMostContractWarps / 2 : kMostContractWarps;
  shape.warps = static_cast<int32_t>(std::clamp<int64_t>(divide_up(threads, 32), 2, most));
  shape.splits =
      shape.rows > 0 && shape.rows == shape.groups && shape.rows < multiprocessors_ && most_work > Limits::kWideWork;
  return shape;
}

int64_t DeviceLevels::allocate(int64_t entries) {
  const int64_t at = to_.scratch;
  to_.scratch += (entries + 1) / 2 * 2;
  return at;
}

// Few outputs of very many terms each leave most threads idle: chunks of terms are outputs of their own first.
void DeviceLevels::cut_long(const PhaseShape& shape, PendingOp& pending, std::vector<PendingOp>& after) {
  DeviceOp& op = pending.op;
  if (op.kind == DeviceKind::draw || op.kind == DeviceKind::choose || op.terms < Limits::kLongTerms) return;
  const int64_t threads = shape.splits ? multiprocessors_ * int64_t{1024} / shape.rows : shape.warps * int64_t{32};
  const int64_t wanted = std::min(op.terms / Limits::kChunkTerms, threads / std::max<int64_t>(1, op.outputs * 32));
  if (wanted < 2) return;
  PendingOp total;
  total.op = op;
  total.op.kind = op.kind == DeviceKind::share || op.kind == DeviceKind::pass ? DeviceKind::sum : op.kind;
  total.op.inputs = total.op.inner = 1;
  total.sums_into = pending.sums_into;
  op.chunk_terms = divide_up(op.terms, wanted);
  const int64_t chunks = divide_up(op.terms, op.chunk_terms);
  total.op.terms = total.op.chunk_terms = chunks;
  const int64_t lanes = int64_t{1} << shape.log_group;
  DeviceOperand part{};
  part.base = kScratchPointer;
  part.row_stride = chunks * op.outputs;
  part.offset = allocate(shape.rows * part.row_stride);
  part.lane_stride = 1;
  part.slice = {op.elements * lanes, -1};
  part.element = {lanes, -1};
  part.term = {op.outputs, -1};
  part.is_wide = 1;
  total.operands = {pending.operands.front(), part};
  pending.operands.front() = part;
  op.chunk_outputs = op.outputs;
  op.outputs *= chunks;
  op.adds = 0;
  pending.sums_into = -1;
  after.push_back(std::move(total));
}

void DeviceLevels::add(const PhaseShape& shape, std::vector<PendingOp> ops) {
  std::vector<PendingOp> after;
  std::vector<std::vector<PendingOp>> levels;
  std::vector<int64_t> bytes;
  std::map<int64_t, size_t> next;  // level for the next operation that adds to the same sums
  size_t open = 0;                 // the first level that is not full
  for (PendingOp& pending : ops) {
    cut_long(shape, pending, after);
    const int64_t own = fetched_bytes(1, static_cast<int64_t>(pending.operands.size()));
    size_t level = open;
    if (pending.sums_into >= 0) level = std::max(level, next[pending.sums_into]);
    const auto full = [&](size_t i) {
      return static_cast<int64_t>(levels[i].size()) >= Limits::kMostLevelOps || bytes[i] + own > Limits::kFetchedBytes;
    };
    while (level < levels.size() && !levels[level].empty() && full(level)) {
      if (level == open) ++open;
      ++level;
    }
    if (level >= levels.size()) {
      levels.resize(level + 1);
      bytes.resize(level + 1, 0);
    }
    if (pending.sums_into >= 0) next[pending.sums_into] = level + 1;
    bytes[level] += own;
    levels[level].push_back(std::move(pending));
  }
  for (auto& level : levels) {
    if (!level.empty()) add_level(shape, level);
  }
  if (!after.empty()) add(shape, std::move(after));
}

void DeviceLevels::add_level(const PhaseShape& shape, std::vector<PendingOp>& ops) {
  int64_t outputs = 0, work = 0;
  for (const PendingOp& pending : ops) {
    outputs += pending.op.outputs;
    work += pending.op.outputs * std::min(pending.op.chunk_terms, pending.op.terms);
  }
  int64_t parts = 1;
  if (shape.splits && work > Limits::kWideWork) {
    parts = std::min(work / Limits::kPartWork, divide_up(4 * multiprocessors_, shape.rows));
  }
  const int64_t threads = parts * shape.warps * 32;
  DeviceLevel level{static_cast<int64_t>(to_.ops.size()), static_cast<int64_t>(ops.size()),
                    static_cast<int64_t>(to_.operands.size()), 0};
  int64_t tasks = 0;
  for (PendingOp& pending : ops) {
    DeviceOp& op = pending.op;
    while (op.log_members < 5 && outputs << (op.log_members + 1) <= threads &&
           int64_t{2} << op.log_members <= op.chunk_terms) {
      ++op.log_members;
    }
    op.operand = static_cast<int64_t>(to_.operands.size());
    op.operands = static_cast<int32_t>(pending.operands.size());
    op.task_begin = tasks;
    tasks += divide_up(op.outputs << op.log_members, 32);
    op.task_end = tasks;
    to_.operands.insert(to_.operands.end(), pending.operands.begin(), pending.operands.end());
    to_.ops.push_back(op);
  }
  level.operands = static_cast<int64_t>(to_.operands.size()) - level.operand;
  to_.levels.push_back(level);
  parts_.push_back(static_cast<int32_t>(std::clamp<int64_t>(divide_up(tasks, shape.warps), 1, parts)));
}

void DeviceLevels::launch(const PhaseShape& shape, int32_t first, int32_t end) {
  while (first < end && shape.rows > 0) {
    int32_t last = first + 1;
    if (parts_[first] == 1) {
      while (last < end && parts_[last] == 1) ++last;
    }
    DeviceSpan span{first,
                    last,
                    shape.log_group,
                    parts_[first],
                    shape.warps,
                    static_cast<int32_t>(shape.in_shared),
                    shape.lanes,
                    shape.groups,
                    shape.rows,
                    0,
                    -1};
    for (int32_t level = first; level < last; ++level) {
      span.fetched_bytes =
          std::max(span.fetched_bytes, fetched_bytes(to_.levels[level].ops, to_.levels[level].operands));
    }
    if (span.fetched_bytes > 2 * Limits::kFetchedBytes) {
      span.spilled_at = allocate(span.rows * span.parts * 2 * span.fetched_bytes / 8);
    }
    to_.spans.push_back(span);
    first = last;
  }
}

}  // namespace sumprod
