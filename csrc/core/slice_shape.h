// Slices of strided tensors as a kernel sees them: types, groups of slices, and where they lie.
//
// Two forms of a block of n consecutive entries:
//   row      n entries of one slice, one after the other;
//   columns  n registers of W entries: entry j of W slices side by side (lane = slice).
// What is computed from a block does not depend on its form, so the form is chosen for speed.
#pragma once

#include "core/exp_log.h"
#include "core/slices.h"

namespace {

using sumprod::kInput;
using sumprod::kOutput;
using sumprod::kResult;
using sumprod::SliceLoop;
using sumprod::SliceProblem;
using sumprod::SliceType;

// Entries of one block (a block of columns fits the L2 cache) and of one chunk. Both are part of
// the definition of a result, because they fix the order of additions.
constexpr int64_t kSliceBlock = 1024;
constexpr int64_t kChunkBlocks = 32;
constexpr int64_t kSliceChunk = kSliceBlock * kChunkBlocks;
// Contiguous slices up to this length are transposed into columns: for sums, which are slow across
// lanes, and for entry-by-entry work (measured).
constexpr int64_t kShortSum = 640, kShortMap = 256;
// Register-wide groups of columns read together, so that each visit to a memory row takes many
// cache lines; as many as this memory holds.
constexpr int kPanel = 32;
constexpr int64_t kPanelBytes = 256 * 1024;

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SUMPROD_INLINE float to_real(float x) { return x; }
SUMPROD_INLINE double to_real(double x) { return x; }
SUMPROD_INLINE float to_real(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}
// Exact: the exponent is moved by a multiplication, which also normalises denormals.
SUMPROD_INLINE float to_real(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
  float result;
  __builtin_memcpy(&result, &magnitude, sizeof result);
  result *= 5.192296858534828e33f;  // 2^112
  uint32_t bits;
  __builtin_memcpy(&bits, &result, sizeof bits);
  bits = ((x.bits & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000u : bits) | sign;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

template <class Source>
using RealOf = decltype(to_real(Source()));

template <class A, class B>
constexpr bool kSameType = false;
template <class A>
constexpr bool kSameType<A, A> = true;

// Calls f.template operator()<Source>() for the input's type.
template <class F>
SUMPROD_INLINE auto dispatch_slices(SliceType type, F f) {
  if (type == SliceType::float64) return f.template operator()<double>();
  if (type == SliceType::float16) return f.template operator()<Float16>();
  if (type == SliceType::bfloat16) return f.template operator()<BFloat16>();
  return f.template operator()<float>();
}

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

SUMPROD_INLINE int64_t inner_size(const SliceLoop& loop) { return loop.dims == 0 ? 1 : loop.size[loop.dims - 1]; }
SUMPROD_INLINE int64_t inner_stride(const SliceLoop& loop, int operand) {
  return loop.dims == 0 ? 1 : loop.stride[operand][loop.dims - 1];
}

struct Offsets {
  int64_t of[sumprod::kOperands];
};

// Where position `index` of a loop lies in the three arrays.
SUMPROD_INLINE Offsets offsets_at(const SliceLoop& loop, int64_t index) {
  Offsets result = {};
  for (int d = loop.dims - 1; d >= 0; --d) {
    const int64_t i = d == 0 ? index : index % loop.size[d];
    if (d > 0) index /= loop.size[d];
    for (int operand = 0; operand < sumprod::kOperands; ++operand) result.of[operand] += i * loop.stride[operand][d];
  }
  return result;
}

// Calls body(position, count, offsets) for the stretches of [begin, end) with constant strides.
template <class Body>
SUMPROD_INLINE void for_stretches(const SliceLoop& loop, int64_t begin, int64_t end, Body body) {
  const int64_t inner = inner_size(loop);
  for (int64_t j = begin; j < end;) {
    const int64_t count = loop.dims <= 1 ? end - j : least(inner - j % inner, end - j);
    body(j, count, offsets_at(loop, j));
    j += count;
  }
}

// The slices of one group. Lanes beyond `count` repeat the last one.
template <class Real>
struct SliceGroup {
  static constexpr int W = Simd<Real>::kWidth;
  int count;
  bool adjacent;  // lane l lies l times `step` after lane 0; else `lane` says where
  Offsets base, step;
  Offsets lane[W];

  SUMPROD_INLINE int64_t at(int operand, int l) const {
    l = l < count ? l : count - 1;
    return adjacent ? base.of[operand] + l * step.of[operand] : lane[l].of[operand];
  }
};

template <class Real>
class SliceShape {
 public:
  static constexpr int W = Simd<Real>::kWidth;

  explicit SliceShape(const SliceProblem& problem) : problem_(problem), kept_(problem.kept), reduced_(problem.reduced) {
    const int64_t length = reduced_.count;
    const bool rows_flat = flat(reduced_, kInput) && (!problem.has_output || flat(reduced_, kOutput));
    columns_ = kept_.count >= W / 2 && !(rows_flat && length > (problem.has_output ? kShortMap : kShortSum));
    // Lanes along the innermost kept dim where that fills most of them; else along all kept dims.
    const bool unit = inner_stride(kept_, kInput) == 1;
    runs_ = kept_.dims <= 1 || inner_size(kept_) >= (unit && !rows_flat ? W / 4 : W);
    chunks = ceil_divide(length, kSliceChunk);
    if (!columns_) {
      groups = kept_.count;
    } else if (runs_) {
      per_run_ = ceil_divide(inner_size(kept_), W);
      groups = kept_.count / inner_size(kept_) * per_run_;
    } else {
      groups = ceil_divide(kept_.count, W);
    }
  }

  bool columns() const { return columns_; }
  int slices_per_group() const { return columns_ ? W : 1; }
  int64_t block_entries() const { return least(reduced_.count, kSliceBlock) + W; }

  // Columns of adjacent slices lie side by side in memory, so a register is read or written at once.
  bool side_by_side(int operand) const {
    return runs_ && kept_.dims > 0 && inner_size(kept_) > 1 && inner_stride(kept_, operand) == 1;
  }
  static bool flat(const SliceLoop& loop, int operand) {
    return loop.dims == 0 || (loop.dims == 1 && loop.stride[operand][0] == 1);
  }
  // Up to `most` groups from `group` on that are full registers in one run.
  int64_t panel_of(int64_t group, int64_t most) const {
    if (!columns_ || !runs_) return 1;
    const int64_t whole = inner_size(kept_) / W, place = group % per_run_;
    return place < whole ? least(most, whole - place) : 1;
  }
  // Groups that a buffer of kPanelBytes holds a block of.
  int64_t buffer_groups() const {
    if (!columns_) return 1;
    const int64_t room = kPanelBytes / (block_entries() * W * int64_t(sizeof(Real)));
    return room < 1 ? 1 : least(least(room, kPanel), groups);
  }

  SUMPROD_INLINE SliceGroup<Real> group(int64_t index) const {
    SliceGroup<Real> result;
    int64_t first = index, last = index + 1;
    result.adjacent = runs_;
    if (columns_ && runs_) {
      const int64_t inner = inner_size(kept_), start = index % per_run_ * W;
      first = index / per_run_ * inner + start;
      last = first + least(W, inner - start);
    } else if (columns_) {
      first = index * W;
      last = least(first + W, kept_.count);
    }
    result.count = int(last - first);
    result.base = offsets_at(kept_, first);
    for (int k = 0; k < sumprod::kOperands; ++k) result.step.of[k] = inner_stride(kept_, k);
    if (!runs_) {
      for (int l = 0; l < result.count; ++l) result.lane[l] = offsets_at(kept_, first + l);
    }
    return result;
  }

  int64_t groups, chunks;

 private:
  const SliceProblem& problem_;
  const SliceLoop &kept_, &reduced_;
  bool columns_, runs_;
  int64_t per_run_ = 1;
};

}  // namespace
