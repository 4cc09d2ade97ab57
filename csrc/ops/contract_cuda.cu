// Runs the levels of contract_device.h.
#include "ops/contract_cuda.cuh"

namespace sumprod {

namespace {

// A block's copy of one level, with addresses in place of numbers of pointers.
struct Fetched {
  DeviceLevel* level;
  DeviceOp* ops;
  DeviceOperand* operands;
};

SUMPROD_DEVICE Fetched fetched_at(unsigned char* room, int64_t ops) {
  DeviceLevel* level = reinterpret_cast<DeviceLevel*>(room);
  DeviceOp* op = reinterpret_cast<DeviceOp*>(level + 1);
  return {level, op, reinterpret_cast<DeviceOperand*>(op + ops)};
}

// By the warp that does nothing else, while others are busy with the level before: what a level needs is three
// reads away, one after the other.
SUMPROD_DEVICE void fetch(const DeviceTables& from, const DeviceLevel& level, unsigned char* room, int64_t row,
                          int64_t group, unsigned char* in_shared) {
  const Fetched to = fetched_at(room, level.ops);
  const int lane = lane_of_thread();
  if (lane == 0) *to.level = level;
  for (int64_t i = lane; i < level.ops; i += kWarp) to.ops[i] = from.ops[level.op + i];
  for (int64_t i = lane; i < level.operands; i += kWarp) {
    DeviceOperand operand = from.operands[level.operand + i];
    unsigned char* base =
        operand.base == kSharedPointer ? in_shared : static_cast<unsigned char*>(from.pointers[operand.base]);
    const int64_t at = operand.offset + row * operand.row_stride + group * operand.group_stride;
    operand.base = reinterpret_cast<int64_t>(base + at * (operand.is_wide ? 8 : 4));
    to.operands[i] = operand;
  }
}

template <class Real>
SUMPROD_DEVICE void run_level(const DeviceTables& tables, const DeviceSpan& span, unsigned char* room, int64_t worker,
                              int64_t workers, int64_t group) {
  const DeviceLevel level = *reinterpret_cast<const DeviceLevel*>(room);
  const Fetched own = fetched_at(room, level.ops);
  const int64_t left = span.lanes - (group << span.log_group);
  const int lanes = left >> span.log_group == 0 ? int(left) : 1 << span.log_group;
  int64_t task = worker;
  for (int64_t i = 0; i < level.ops; ++i) {
    const DeviceOp& op = own.ops[i];
    const DeviceOperand* operand = own.operands + (op.operand - level.operand);
    for (; task < op.task_end; task += workers) {
      run_task<Real>(op, operand, task - op.task_begin, span.log_group, lanes, tables.tables);
    }
  }
}

template <class Real>
__global__ void __launch_bounds__((kMostContractWarps + 1) * kWarp)
    contract_levels(DeviceTables tables, DeviceSpan span) {
  unsigned char* shared = shared_memory();
  unsigned char* in_shared = shared;
  unsigned char* room = shared + int64_t(span.in_shared) * 8;
  if (span.spilled_at >= 0) {
    room = static_cast<unsigned char*>(tables.pointers[kScratchPointer]) + span.spilled_at * 8 +
           int64_t(blockIdx.x) * 2 * span.fetched_bytes;
  }
  const int64_t row = blockIdx.x / span.parts, part = blockIdx.x % span.parts;
  const int warp = warp_of_thread();
  int64_t group = row;
  int32_t level = span.first_level, turn = 0;
  if (warp == span.warps) fetch(tables, tables.levels[level], room, row, group, in_shared);
  __syncthreads();
  while (group < span.groups) {
    int64_t next_group = group;
    int32_t next = level + 1;
    if (next == span.end_level) {
      next = span.first_level;
      next_group += span.rows;
    }
    if (warp < span.warps) {
      run_level<Real>(tables, span, room + turn * span.fetched_bytes, part * span.warps + warp,
                      int64_t(span.parts) * span.warps, group);
    } else if (next_group < span.groups) {
      fetch(tables, tables.levels[next], room + (1 - turn) * span.fetched_bytes, row, next_group, in_shared);
    }
    __syncthreads();
    group = next_group;
    level = next;
    turn = 1 - turn;
  }
}

constexpr int kFewPointers = 128, kManyPointers = 4000;  // parameters of kernels may have 32764 bytes

template <int N>
struct Pointers {
  void* p[N];
};

template <int N>
__global__ void store_pointers(Pointers<N> pointers, int count, void** to) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) to[i] = pointers.p[i];
}

template <int N>
void store_some(void* const* pointers, int count, void** to, const gpu::Stream& stream) {
  Pointers<N> own;
  for (int i = 0; i < N; ++i) own.p[i] = i < count ? pointers[i] : nullptr;
  gpu::launch(store_pointers<N>, {1, 256}, stream, own, count, to);
}

}  // namespace

void contract_upload_cuda(void* to, const void* from, int64_t bytes, const gpu::Stream& stream) {
  gpu::upload(to, from, bytes, stream);
}

void contract_clear_cuda(void* to, int64_t bytes, const gpu::Stream& stream) {
  if (bytes > 0) gpu::clear(to, bytes, stream);
}

void contract_store_pointers_cuda(void* const* pointers, int64_t count, void** to, const gpu::Stream& stream) {
  for (int64_t at = 0; at < count; at += kManyPointers) {
    const int some = int(count - at < kManyPointers ? count - at : kManyPointers);
    if (some <= kFewPointers) {
      store_some<kFewPointers>(pointers + at, some, to + at, stream);
    } else {
      store_some<kManyPointers>(pointers + at, some, to + at, stream);
    }
  }
}

void contract_run_cuda(const DeviceTables& tables, const DeviceSpan& span, bool is_double, const gpu::Stream& stream) {
  if (span.rows == 0 || span.first_level == span.end_level) return;
  const gpu::LaunchShape shape{span.rows * span.parts, (span.warps + 1) * gpu::kWarp,
                               int64_t(span.in_shared) * 8 + (span.spilled_at < 0 ? 2 * span.fetched_bytes : 0)};
  if (is_double) {
    gpu::launch(contract_levels<double>, shape, stream, tables, span);
  } else {
    gpu::launch(contract_levels<float>, shape, stream, tables, span);
  }
}

}  // namespace sumprod
