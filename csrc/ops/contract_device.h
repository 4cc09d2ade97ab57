// Contraction plans as the kernels for GPUs read them: a list of levels, each a list of operations that do not
// depend on each other. All of a forward, backward or drawing pass are such lists, made once per plan and layout
// (contract_device_program.h); only the addresses of tensors change from call to call.
//
// Every operation is a gather: each of its outputs is reduced from terms, each term from the entries of some
// operands, by one or several threads of a warp in a fixed order. Numbers between operations are logs, or
// gradients, in double: sums of logs are exact enough without scales, and -inf, NaN and huge ranges need no care.
//
// The slices along one plate, the lane plate, are independent. A block of threads takes a group of them through
// all levels, then the next group; or, where there are few slices and much work in each, several blocks ("parts")
// share a group, and every level is a launch of its own.
#pragma once

#include <stdint.h>

#include "gpu/stream.h"

namespace sumprod {

// How far apart positions along some dims lie, in entries: i * stride, or tables[table + i] where table >= 0.
struct DeviceAxis {
  int64_t stride, table;
};

// Entries of a tensor, or of scratch memory:
//   base[offset + row * row_stride + group * group_stride + lane * lane_stride + slice + element + term]
// for the block's row of scratch memory, the group of lanes that it works on, and the lane within that group.
struct DeviceOperand {
  int64_t base;  // number of a pointer; in a block's copy, the address for that block and group
  int64_t offset, row_stride, group_stride, lane_stride;
  DeviceAxis slice, element, term;
  int64_t is_wide;  // 8 bytes per entry (double, int64), else 4
};

enum class DeviceKind : int32_t {
  log_sum,  // log of the sum over terms of exp(sum of inputs)
  largest,  // the largest sum of inputs
  sum,      // the sum over terms of the inputs
  plates,   // the same of logs, where +inf is not a number
  share,    // the sum over terms of grad * exp(sum of inputs - out), 0 where out is -inf
  pass,     // the sum over terms of grad, 0 where out is -inf
  draw,     // which term, by a uniform, in proportion to exp(sum of inputs)
  choose,   // the first of the largest terms
};

// Operands, in order: the target (of `draw`, the uniform); of `share` and `pass`, grad and out; the inputs, those
// that vary with the term first; of `draw` and `choose`, the values of variables that are given, then of those drawn.
// Of a variable, `element.stride` is the stride in the index of elements or terms, and `term.stride` the size.
struct DeviceOp {
  DeviceKind kind;
  int32_t inputs, inner;  // all, and those that vary with the term
  int32_t given, drawn;
  int32_t adds;         // to what the target holds
  int32_t log_members;  // threads that share an output, as a power of two
  int32_t operands;
  int64_t operand;               // number of the first
  int64_t outputs;               // (slices * elements) << log_group, times chunks
  int64_t elements;              // an output is (chunk, slice, element, lane)
  int64_t terms, chunk_terms;    // a chunk is so many terms; the target's `term` tells chunks apart
  int64_t chunk_outputs;         // outputs of one chunk
  int64_t task_begin, task_end;  // of this operation among those of its level; a task is what a warp does at once
};

struct DeviceLevel {
  int64_t op, ops;
  int64_t operand, operands;
};

// Levels [first_level, end_level) for all lanes.
struct DeviceSpan {
  int32_t first_level, end_level;
  int32_t log_group;  // lanes per group, as a power of two
  int32_t parts;      // blocks per group; then first_level + 1 == end_level
  int32_t warps;      // that compute, per block; one more fetches
  int32_t in_shared;  // entries of scratch memory that each block has in shared memory
  int64_t lanes, groups, rows;
  int64_t fetched_bytes;  // room for the operations and operands of a level
  int64_t spilled_at;     // -1: that room is in shared memory; else where it is in scratch memory, in entries
};

constexpr int64_t kScratchPointer = 0, kSharedPointer = -1;
constexpr int kMostContractWarps = 16;

// Room for one level.
inline int64_t fetched_bytes(int64_t ops, int64_t operands) {
  return (static_cast<int64_t>(sizeof(DeviceLevel)) + ops * static_cast<int64_t>(sizeof(DeviceOp)) +
          operands * static_cast<int64_t>(sizeof(DeviceOperand)) + 15) /
         16 * 16;
}

// Addresses on the device.
struct DeviceTables {
  const DeviceLevel* levels;
  const DeviceOp* ops;
  const DeviceOperand* operands;
  const int64_t* tables;
  void* const* pointers;
};

void contract_upload_cuda(void* to, const void* from, int64_t bytes, const gpu::Stream& stream);
void contract_clear_cuda(void* to, int64_t bytes, const gpu::Stream& stream);
// Writes `count` pointers to a table on the device, as parameters of kernels: there is no copy to wait for.
void contract_store_pointers_cuda(void* const* pointers, int64_t count, void** to, const gpu::Stream& stream);
// `is_double`: exponentials in double, else in float.
void contract_run_cuda(const DeviceTables& tables, const DeviceSpan& span, bool is_double, const gpu::Stream& stream);

}  // namespace sumprod
