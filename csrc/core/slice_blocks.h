// Moves entries of slices between strided tensors and small buffers that vectors can work on.
//
// Two forms of a block of n consecutive entries:
//   row      n entries of one slice, one after the other;
//   columns  n registers of W entries: entry j of W slices side by side (lane = slice).
// What is computed from a block does not depend on its form, so the form is chosen for speed.
#pragma once

#include "core/simd.h"
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
// Contiguous slices up to this length are transposed into columns.
constexpr int64_t kShortSlice = 192;
// Register-wide groups of columns read together, so that each visit to a memory row takes
// several cache lines.
constexpr int kPanel = 4;

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

// The slices of one group. Lanes beyond `count` repeat lane 0.
template <class Real>
struct SliceGroup {
  static constexpr int W = Simd<Real>::kWidth;
  int count;
  bool adjacent;  // lane l is `kept inner stride` times l after lane 0
  Offsets lane[W];
};

template <class Real>
class SliceShape {
 public:
  static constexpr int W = Simd<Real>::kWidth;

  explicit SliceShape(const SliceProblem& problem) : problem_(problem), kept_(problem.kept), reduced_(problem.reduced) {
    const int64_t length = reduced_.count;
    const bool rows_flat = flat(reduced_, kInput) && (!problem.has_output || flat(reduced_, kOutput));
    columns_ = kept_.count >= W / 2 && !(rows_flat && length > kShortSlice);
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
  // Groups that follow `group` in the same run of full registers, itself included.
  int64_t panel_of(int64_t group) const {
    if (!columns_ || !runs_) return 1;
    const int64_t whole = inner_size(kept_) / W, place = group % per_run_;
    return place < whole ? whole - place : 1;
  }

  SliceGroup<Real> group(int64_t index) const {
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
    result.lane[0] = offsets_at(kept_, first);
    for (int l = 1; l < W; ++l) {
      if (l >= result.count) {
        result.lane[l] = result.lane[0];
      } else if (runs_) {
        for (int k = 0; k < sumprod::kOperands; ++k) {
          result.lane[l].of[k] = result.lane[0].of[k] + l * kept_.stride[k][kept_.dims - 1];
        }
      } else {
        result.lane[l] = offsets_at(kept_, first + l);
      }
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

// ---- rows ---------------------------------------------------------------------------------------

template <class Real, class Source>
SUMPROD_INLINE void gather_stretch(Real* to, const Source* from, int64_t stride, int64_t count) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_real(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_real(from[i * stride]);
  }
}

// Entries [begin, end) of the slice at `base` as a row: in place when possible, else in `buffer`.
template <class Real, class Source>
SUMPROD_INLINE const Real* read_row(const SliceLoop& reduced, const Source* base, int64_t begin, int64_t end, Real* buffer) {
  if constexpr (kSameType<Real, Source>) {
    if (SliceShape<Real>::flat(reduced, kInput)) return base + begin;
  }
  const int64_t stride = inner_stride(reduced, kInput);
  for_stretches(reduced, begin, end, [&](int64_t j, int64_t count, const Offsets& at) SUMPROD_INLINE_LAMBDA {
    gather_stretch(buffer + (j - begin), base + at.of[kInput], stride, count);
  });
  return buffer;
}

template <class Real>
SUMPROD_INLINE void write_row(const SliceLoop& reduced, const Real* row, Real* base, int64_t begin, int64_t end) {
  const int64_t stride = inner_stride(reduced, kOutput);
  for_stretches(reduced, begin, end, [&](int64_t j, int64_t count, const Offsets& at) SUMPROD_INLINE_LAMBDA {
    for (int64_t i = 0; i < count; ++i) base[at.of[kOutput] + i * stride] = row[j - begin + i];
  });
}

// ---- columns ------------------------------------------------------------------------------------

// A memory row of up to W neighbouring slices.
template <class Real, class Source>
SUMPROD_INLINE Vec<Real> read_neighbours(const Source* from, int count) {
  if constexpr (kSameType<Real, Source>) {
    return count == Simd<Real>::kWidth ? load(from) : load_partial(from, count, Real(0));
  } else {
    Real part[Simd<Real>::kWidth] = {};
    if (count == Simd<Real>::kWidth) {
      for (int l = 0; l < Simd<Real>::kWidth; ++l) part[l] = to_real(from[l]);
    } else {
      for (int l = 0; l < count; ++l) part[l] = to_real(from[l]);
    }
    return load(part);
  }
}

// Slices that are contiguous each: W entries of each of W slices, transposed.
template <class Real>
void read_transposed(const SliceGroup<Real>& group, const Real* base, int64_t offset, int64_t count, Real* to) {
  constexpr int W = Simd<Real>::kWidth;
  for (int64_t j = 0; j < count; j += W) {
    Vec<Real> square[W];
    if (j + W <= count) {
      for (int l = 0; l < W; ++l) square[l] = load(base + group.lane[l].of[kInput] + offset + j);
    } else {
      for (int l = 0; l < W; ++l) square[l] = load_partial(base + group.lane[l].of[kInput] + offset + j, count - j, Real(0));
    }
    transpose<Real>(square);
    for (int i = 0; i < W; ++i) store(to + (j + i) * W, square[i]);
  }
}

template <class Real>
void write_transposed(const SliceGroup<Real>& group, const Real* from, int64_t count, Real* base, int64_t offset) {
  constexpr int W = Simd<Real>::kWidth;
  for (int64_t j = 0; j < count; j += W) {
    Vec<Real> square[W];
    for (int i = 0; i < W; ++i) square[i] = load(from + (j + i) * W);
    transpose<Real>(square);
    for (int l = 0; l < group.count; ++l) {
      Real* to = base + group.lane[l].of[kOutput] + offset + j;
      if (j + W <= count) {
        store(to, square[l]);
      } else {
        store_partial(to, count - j, square[l]);
      }
    }
  }
}

// Entries [begin, end) of `panel` neighbouring groups, each into `apart` reals of the buffer.
// The buffer needs W registers more than it has entries.
template <class Real, class Source>
void read_columns(const SliceShape<Real>& shape, const SliceLoop& reduced, const SliceGroup<Real>* groups, int panel,
                  const Source* base, int64_t begin, int64_t end, Real* buffer, int64_t apart) {
  constexpr int W = Simd<Real>::kWidth;
  const int64_t stride = inner_stride(reduced, kInput);
  for_stretches(reduced, begin, end, [&](int64_t j, int64_t count, const Offsets& at) {
    Real* to = buffer + (j - begin) * W;
    const int64_t offset = at.of[kInput];
    if (shape.side_by_side(kInput)) {
      for (int64_t i = 0; i < count; ++i) {
        for (int p = 0; p < panel; ++p) {
          const Source* from = base + groups[p].lane[0].of[kInput] + offset + i * stride;
          store(to + p * apart + i * W, read_neighbours<Real>(from, groups[p].count));
        }
      }
      return;
    }
    for (int p = 0; p < panel; ++p) {
      if constexpr (kSameType<Real, Source>) {
        if (stride == 1) {
          read_transposed(groups[p], base, offset, count, to + p * apart);
          continue;
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int l = 0; l < W; ++l) {
          to[p * apart + i * W + l] = to_real(base[groups[p].lane[l].of[kInput] + offset + i * stride]);
        }
      }
    }
  });
}

template <class Real>
void write_columns(const SliceShape<Real>& shape, const SliceLoop& reduced, const SliceGroup<Real>& group, const Real* buffer,
                   int64_t begin, int64_t end, Real* base) {
  constexpr int W = Simd<Real>::kWidth;
  const int64_t stride = inner_stride(reduced, kOutput);
  for_stretches(reduced, begin, end, [&](int64_t j, int64_t count, const Offsets& at) {
    const Real* from = buffer + (j - begin) * W;
    const int64_t offset = at.of[kOutput];
    if (shape.side_by_side(kOutput)) {
      for (int64_t i = 0; i < count; ++i) {
        Real* to = base + group.lane[0].of[kOutput] + offset + i * stride;
        if (group.count == W) {
          store(to, load(from + i * W));
        } else {
          store_partial(to, group.count, load(from + i * W));
        }
      }
    } else if (stride == 1) {
      write_transposed(group, from, count, base, offset);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        for (int l = 0; l < group.count; ++l) base[group.lane[l].of[kOutput] + offset + i * stride] = from[i * W + l];
      }
    }
  });
}

// One real per slice of a group, to and from an array indexed by slice.
template <class Real>
SUMPROD_INLINE Vec<Real> read_results(const SliceShape<Real>& shape, const SliceGroup<Real>& group, const Real* base) {
  if (shape.columns() && shape.side_by_side(kResult) && group.count == Simd<Real>::kWidth) {
    return load(base + group.lane[0].of[kResult]);
  }
  Real part[Simd<Real>::kWidth];
  for (int l = 0; l < Simd<Real>::kWidth; ++l) part[l] = base[group.lane[l].of[kResult]];
  return load(part);
}

template <class Real>
SUMPROD_INLINE void write_results(const SliceShape<Real>& shape, const SliceGroup<Real>& group, Vec<Real> values, Real* base) {
  if (shape.columns() && shape.side_by_side(kResult) && group.count == Simd<Real>::kWidth) {
    return store(base + group.lane[0].of[kResult], values);
  }
  Real part[Simd<Real>::kWidth];
  store(part, values);
  for (int l = 0; l < group.count; ++l) base[group.lane[l].of[kResult]] = part[l];
}

// Calls f(entry registers, a, b) on entries of slices and writes what it returns; a and b hold one
// real per slice. `items` numbers groups chunk by chunk.
template <class Real, class Parameters, class F>
SUMPROD_INLINE void map_slices(const SliceProblem& problem, int64_t begin_item, int64_t end_item, Real* output, Real* buffer,
                               Parameters parameters, F f) {
  constexpr int W = Simd<Real>::kWidth;
  const SliceShape<Real> shape(problem);
  const SliceLoop& reduced = problem.reduced;
  const Real* input = static_cast<const Real*>(problem.input);
  const bool in_place = SliceShape<Real>::flat(reduced, kOutput);
  for (int64_t item = begin_item; item < end_item; ++item) {
    const int64_t index = item % shape.groups, chunk = item / shape.groups;
    const SliceGroup<Real> group = shape.group(index);
    Vec<Real> a, b;
    parameters(shape, group, index, a, b);
    const int64_t last = least((chunk + 1) * kSliceChunk, reduced.count);
    for (int64_t begin = chunk * kSliceChunk; begin < last; begin += kSliceBlock) {
      const int64_t end = least(begin + kSliceBlock, last), n = end - begin;
      if (shape.columns()) {
        read_columns(shape, reduced, &group, 1, input, begin, end, buffer, 0);
        for (int64_t j = 0; j < n; ++j) store(buffer + j * W, f(load(buffer + j * W), a, b));
        write_columns(shape, reduced, group, buffer, begin, end, output);
        continue;
      }
      const Vec<Real> a_row = splat(a[0]), b_row = splat(b[0]);
      const Real* row = read_row(reduced, input + group.lane[0].of[kInput], begin, end, buffer);
      Real* target = output + group.lane[0].of[kOutput];
      Real* to = in_place ? target + begin : buffer;
      int64_t j = 0;
      for (; j + W <= n; j += W) store(to + j, f(load(row + j), a_row, b_row));
      if (j < n) store_partial(to + j, n - j, f(load_partial(row + j, n - j, Real(0)), a_row, b_row));
      if (!in_place) write_row(reduced, buffer, target, begin, end);
    }
  }
}

}  // namespace
