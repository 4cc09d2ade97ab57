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
    return room < 1 ? 1 : least(room, kPanel);
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

// W slices of n entries that follow each other without gaps, n a power of two up to W: they fill n
// registers, and log2(n) unshuffles separate their entries.
template <class Real>
SUMPROD_INLINE bool is_dense(const SliceGroup<Real>& group, int operand, int64_t n) {
  constexpr int W = Simd<Real>::kWidth;
  return group.adjacent && group.count == W && group.step.of[operand] == n && n <= W && (n & (n - 1)) == 0;
}

template <class Real, int n>
SUMPROD_INLINE void read_dense(const Real* from, Real* to) {
  constexpr int W = Simd<Real>::kWidth;
  Vec<Real> rows[n], other[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) rows[i] = load(from + i * W);
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      other[i] = take_even(rows[2 * i], rows[2 * i + 1]);
      other[i + n / 2] = take_odd(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = other[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store(to + i * W, rows[i]);
}

template <class Real, int n>
SUMPROD_INLINE void write_dense(const Real* from, Real* to) {
  constexpr int W = Simd<Real>::kWidth;
  Vec<Real> rows[n], other[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) rows[i] = load(from + i * W);
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      other[2 * i] = interleave_low(rows[i], rows[i + n / 2]);
      other[2 * i + 1] = interleave_high(rows[i], rows[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = other[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store(to + i * W, rows[i]);
}

// f.template operator()<n>() for n in {1, 2, 4, 8, 16}.
template <int kLimit, class F>
SUMPROD_INLINE void dispatch_power(int64_t n, F f) {
  if (n == 1) return f.template operator()<1>();
  if (n == 2) return f.template operator()<2>();
  if constexpr (kLimit >= 4) {
    if (n == 4) return f.template operator()<4>();
  }
  if constexpr (kLimit >= 8) {
    if (n == 8) return f.template operator()<8>();
  }
  if constexpr (kLimit >= 16) {
    if (n == 16) return f.template operator()<16>();
  }
}

// Slices that are contiguous each: W entries of each of W slices, transposed.
template <class Real>
void read_transposed(const SliceGroup<Real>& group, const Real* base, int64_t offset, int64_t count, Real* to) {
  constexpr int W = Simd<Real>::kWidth;
  for (int64_t j = 0; j < count; j += W) {
    Vec<Real> square[W];
    if (j + W <= count) {
      for (int l = 0; l < W; ++l) square[l] = load(base + group.at(kInput, l) + offset + j);
    } else {
      for (int l = 0; l < W; ++l) square[l] = load_partial(base + group.at(kInput, l) + offset + j, count - j, Real(0));
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
      Real* to = base + group.at(kOutput, l) + offset + j;
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
          const Source* from = base + groups[p].base.of[kInput] + offset + i * stride;
          store(to + p * apart + i * W, read_neighbours<Real>(from, groups[p].count));
        }
      }
      return;
    }
    for (int p = 0; p < panel; ++p) {
      if constexpr (kSameType<Real, Source>) {
        if (stride == 1) {
          if (is_dense(groups[p], kInput, count)) {
            const Real* from = base + groups[p].base.of[kInput] + offset;
            dispatch_power<W>(count, [&]<int n>() SUMPROD_INLINE_LAMBDA { read_dense<Real, n>(from, to + p * apart); });
          } else {
            read_transposed(groups[p], base, offset, count, to + p * apart);
          }
          continue;
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int l = 0; l < W; ++l) {
          to[p * apart + i * W + l] = to_real(base[groups[p].at(kInput, l) + offset + i * stride]);
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
        Real* to = base + group.base.of[kOutput] + offset + i * stride;
        if (group.count == W) {
          store(to, load(from + i * W));
        } else {
          store_partial(to, group.count, load(from + i * W));
        }
      }
    } else if (stride == 1) {
      if (is_dense(group, kOutput, count)) {
        Real* to = base + group.base.of[kOutput] + offset;
        dispatch_power<W>(count, [&]<int n>() SUMPROD_INLINE_LAMBDA { write_dense<Real, n>(from, to); });
      } else {
        write_transposed(group, from, count, base, offset);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        for (int l = 0; l < group.count; ++l) base[group.at(kOutput, l) + offset + i * stride] = from[i * W + l];
      }
    }
  });
}

// One real per slice of a group, to and from an array indexed by slice.
template <class Real>
SUMPROD_INLINE Vec<Real> read_results(const SliceShape<Real>& shape, const SliceGroup<Real>& group, const Real* base) {
  if (shape.columns() && shape.side_by_side(kResult) && group.count == Simd<Real>::kWidth) {
    return load(base + group.base.of[kResult]);
  }
  Real part[Simd<Real>::kWidth];
  for (int l = 0; l < Simd<Real>::kWidth; ++l) part[l] = base[group.at(kResult, l)];
  return load(part);
}

template <class Real>
SUMPROD_INLINE void write_results(const SliceShape<Real>& shape, const SliceGroup<Real>& group, Vec<Real> values, Real* base) {
  if (shape.columns() && shape.side_by_side(kResult) && group.count == Simd<Real>::kWidth) {
    return store(base + group.base.of[kResult], values);
  }
  Real part[Simd<Real>::kWidth];
  store(part, values);
  for (int l = 0; l < group.count; ++l) base[group.at(kResult, l)] = part[l];
}

// Calls f(entry registers, a, b) on entries of slices and writes what it returns; a and b hold one
// real per slice and come from parameters(shape, group, index, a, b). `items` numbers groups chunk
// by chunk.
template <class Real, class Parameters, class F>
class SliceMap {
 public:
  static constexpr int W = Simd<Real>::kWidth;

  SliceMap(const SliceProblem& problem, Real* output, void* workspace, const Parameters& parameters, const F& f)
      : shape_(problem),
        reduced_(problem.reduced),
        input_(static_cast<const Real*>(problem.input)),
        output_(output),
        buffer_(static_cast<Real*>(workspace)),
        parameters_(parameters),
        f_(f) {}

  void run(int64_t begin_item, int64_t end_item) {
    const bool sweep = shape_.side_by_side(kInput) && shape_.side_by_side(kOutput);
    for (int64_t item = begin_item; item < end_item;) {
      const int64_t index = item % shape_.groups, chunk = item / shape_.groups;
      begin_ = chunk * kSliceChunk;
      end_ = least(begin_ + kSliceChunk, reduced_.count);
      const int64_t panel = sweep ? shape_.panel_of(index, least(kPanel, end_item - item)) : 1;
      group_ = shape_.group(index);
      if (group_.count == W && sweep) {
        run_sweep(index, panel);
      } else if (shape_.columns()) {
        run_columns(index);
      } else {
        run_row(index);
      }
      item += panel;
    }
  }

 private:
  // Memory row by memory row over a panel of neighbouring groups.
  void run_sweep(int64_t index, int64_t panel) {
    Vec<Real> a[kPanel], b[kPanel];
    for (int64_t p = 0; p < panel; ++p) parameters_(shape_, shape_.group(index + p), index + p, a[p], b[p]);
    const int64_t from_stride = inner_stride(reduced_, kInput), to_stride = inner_stride(reduced_, kOutput);
    for_stretches(reduced_, begin_, end_, [&](int64_t, int64_t count, const Offsets& at) {
      const Real* from = input_ + group_.base.of[kInput] + at.of[kInput];
      Real* to = output_ + group_.base.of[kOutput] + at.of[kOutput];
      for (int64_t i = 0; i < count; ++i, from += from_stride, to += to_stride) {
        for (int64_t p = 0; p < panel; ++p) store(to + p * W, f_(load(from + p * W), a[p], b[p]));
      }
    });
  }

  void run_columns(int64_t index) {
    Vec<Real> a, b;
    parameters_(shape_, group_, index, a, b);
    for (int64_t begin = begin_; begin < end_; begin += kSliceBlock) {
      const int64_t end = least(begin + kSliceBlock, end_);
      read_columns(shape_, reduced_, &group_, 1, input_, begin, end, buffer_, 0);
      for (int64_t j = 0; j < end - begin; ++j) store(buffer_ + j * W, f_(load(buffer_ + j * W), a, b));
      write_columns(shape_, reduced_, group_, buffer_, begin, end, output_);
    }
  }

  void run_row(int64_t index) {
    Vec<Real> a, b;
    parameters_(shape_, group_, index, a, b);
    const bool in_place = SliceShape<Real>::flat(reduced_, kOutput);
    Real* target = output_ + group_.base.of[kOutput];
    for (int64_t begin = begin_; begin < end_; begin += kSliceBlock) {
      const int64_t end = least(begin + kSliceBlock, end_), n = end - begin;
      const Real* row = read_row(reduced_, input_ + group_.base.of[kInput], begin, end, buffer_);
      Real* to = in_place ? target + begin : buffer_;
      int64_t j = 0;
      for (; j + W <= n; j += W) store(to + j, f_(load(row + j), a, b));
      if (j < n) store_partial(to + j, n - j, f_(load_partial(row + j, n - j, Real(0)), a, b));
      if (!in_place) write_row(reduced_, buffer_, target, begin, end);
    }
  }

  const SliceShape<Real> shape_;
  const SliceLoop& reduced_;
  const Real* input_;
  Real *output_, *buffer_;
  const Parameters& parameters_;
  const F& f_;
  SliceGroup<Real> group_;
  int64_t begin_ = 0, end_ = 0;
};

}  // namespace
