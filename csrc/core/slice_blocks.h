// Moves blocks of slices between strided tensors and small buffers that vectors can work on.
#pragma once

#include "core/slice_shape.h"

namespace {

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
SUMPROD_INLINE const Real* read_row(const SliceLoop& reduced, const Source* base, int64_t begin, int64_t end,
                                    Real* buffer) {
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

// Few entries of each of many slices: not worth a transposition.
template <class Real>
SUMPROD_INLINE bool is_narrow(const SliceGroup<Real>& group, int64_t n) {
  return group.adjacent && group.count == Simd<Real>::kWidth && n <= Simd<Real>::kWidth / 2;
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
          } else if (is_narrow(groups[p], count)) {
            const Real* from = base + groups[p].base.of[kInput] + offset;
            const int64_t step = groups[p].step.of[kInput];
            for (int64_t i = 0; i < count; ++i) {
              for (int l = 0; l < W; ++l) to[p * apart + i * W + l] = from[l * step + i];
            }
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
void write_columns(const SliceShape<Real>& shape, const SliceLoop& reduced, const SliceGroup<Real>& group,
                   const Real* buffer, int64_t begin, int64_t end, Real* base) {
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
      } else if (is_narrow(group, count)) {
        Real* to = base + group.base.of[kOutput] + offset;
        const int64_t step = group.step.of[kOutput];
        for (int l = 0; l < W; ++l) {
          for (int64_t i = 0; i < count; ++i) to[l * step + i] = from[i * W + l];
        }
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
SUMPROD_INLINE void write_results(const SliceShape<Real>& shape, const SliceGroup<Real>& group, Vec<Real> values,
                                  Real* base) {
  if (shape.columns() && shape.side_by_side(kResult) && group.count == Simd<Real>::kWidth) {
    return store(base + group.base.of[kResult], values);
  }
  Real part[Simd<Real>::kWidth];
  store(part, values);
  for (int l = 0; l < group.count; ++l) base[group.at(kResult, l)] = part[l];
}

}  // namespace
