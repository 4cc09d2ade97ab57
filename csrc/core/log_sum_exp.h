// Sums of exponentials of slices, relative to their maxima; the arithmetic of logsumexp and
// normalize_weights.
//
// Order of additions, the same in every path, so that a slice's result depends on nothing but its
// entries: entry j of a block goes to accumulator j mod W; the accumulators are added as a binary
// tree; blocks are added in order, in double, within a chunk, and chunks in order within a slice.
#pragma once

#include "core/slice_blocks.h"

namespace {

using sumprod::SlicePartial;

// NaN is passed over here; it comes back through the sums. Infinite maxima shift nothing.
template <class Real>
SUMPROD_INLINE Vec<Real> shift_of(Vec<Real> top) {
  return ((top == kInfinity<Real>) | (top == -kInfinity<Real>)) ? splat(Real(0)) : top;
}

// Adds accumulators up as a tree.
template <class T, int kCount>
SUMPROD_INLINE T add_tree(T* acc) {
#pragma GCC unroll 4
  for (int half = kCount / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int l = 0; l < half; ++l) acc[l] += acc[l + half];
  }
  return acc[0];
}

// One number per block and slice.
template <class T>
struct BlockSum {
  T top, sum, squares;
};

// +inf entries share the weight: count them. NaN wins.
template <class Real>
__attribute__((noinline)) Real count_infinite(const Real* p, int64_t n, int64_t stride) {
  Real count = 0;
  for (int64_t j = 0; j < n; ++j) {
    const Real x = p[j * stride];
    count += x == kInfinity<Real> ? Real(1) : (x != x ? x : Real(0));
  }
  return count;
}

template <class Real, bool kSquares>
SUMPROD_INLINE BlockSum<Real> sum_row(const Real* p, int64_t n) {
  constexpr int W = Simd<Real>::kWidth;
  const int64_t whole = n - n % W;
  const Vec<Real> tail = whole < n ? load_partial(p + whole, n - whole, -kInfinity<Real>) : splat(-kInfinity<Real>);
  Vec<Real> best[4] = {max_fast(tail, splat(-kInfinity<Real>)), splat(-kInfinity<Real>), splat(-kInfinity<Real>),
                       splat(-kInfinity<Real>)};
  int64_t j = 0;
  for (; j + 4 * W <= whole; j += 4 * W) {
    for (int k = 0; k < 4; ++k) best[k] = max_fast(load(p + j + k * W), best[k]);
  }
  for (; j < whole; j += W) best[0] = max_fast(load(p + j), best[0]);
  best[0] = max_fast(max_fast(best[0], best[1]), max_fast(best[2], best[3]));
  BlockSum<Real> result = {};
  result.top = horizontal_max<Real>(best[0]);
  if (result.top == kInfinity<Real>) {
    result.sum = result.squares = count_infinite(p, n, 1);
    return result;
  }
  const Vec<Real> shift = shift_of<Real>(splat(result.top));
  Vec<Real> sum = {}, squares = {};
  for (j = 0; j < whole; j += W) {
    const Vec<Real> e = exp_nonpositive<Real>(load(p + j) - shift);
    sum += e;
    if (kSquares) squares += e * e;
  }
  if (whole < n) {
    const Vec<Real> e = exp_nonpositive<Real>(tail - shift);
    sum += e;
    if (kSquares) squares += e * e;
  }
  Real lanes[W];
  store(lanes, sum);
  result.sum = add_tree<Real, W>(lanes);
  if (kSquares) {
    store(lanes, squares);
    result.squares = add_tree<Real, W>(lanes);
  }
  return result;
}

template <class Real, bool kSquares>
SUMPROD_INLINE BlockSum<Vec<Real>> sum_columns(const Real* p, int64_t n) {
  constexpr int W = Simd<Real>::kWidth;
  BlockSum<Vec<Real>> result = {splat(-kInfinity<Real>), {}, {}};
  Vec<Real> other = splat(-kInfinity<Real>);
  int64_t j = 0;
  for (; j + 2 <= n; j += 2) {
    result.top = max_fast(load(p + j * W), result.top);
    other = max_fast(load(p + (j + 1) * W), other);
  }
  if (j < n) result.top = max_fast(load(p + j * W), result.top);
  result.top = max_fast(other, result.top);
  const Vec<Real> shift = shift_of<Real>(result.top);
  Vec<Real> sum[W] = {}, squares[W] = {};
  const auto add = [&](int64_t from, int l) SUMPROD_INLINE_LAMBDA {
    const Vec<Real> e = exp_nonpositive<Real>(load(p + (from + l) * W) - shift);
    sum[l] += e;
    if (kSquares) squares[l] += e * e;
  };
  for (j = 0; j + W <= n; j += W) {
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) add(j, l);
  }
#pragma GCC unroll 16
  for (int l = 0; l < W - 1; ++l) {
    if (j + l < n) add(j, l);
  }
  result.sum = add_tree<Vec<Real>, W>(sum);
  if (kSquares) result.squares = add_tree<Vec<Real>, W>(squares);
  if (any(result.top == kInfinity<Real>)) {
    for (int l = 0; l < W; ++l) {
      if (result.top[l] == kInfinity<Real>) result.sum[l] = result.squares[l] = count_infinite(p + l, n, W);
    }
  }
  return result;
}

// exp(a - b) for a <= b, 1 for equal infinities.
template <class Real>
SUMPROD_INLINE Vec<Real> weight_of(Vec<Real> a, Vec<Real> b) {
  return a == b ? splat(Real(1)) : exp_nonpositive<Real>(a - b);
}

// What W slices add up to: `sum` rounds a total kept in double.
template <class Real>
struct ChunkSum {
  Vec<Real> top, sum, squares;
};

// Adds the blocks of a chunk in double. Out of line, so that all paths share one rounding.
template <class Real, bool kSquares>
__attribute__((noinline)) void add_blocks(const BlockSum<Vec<Real>>* blocks, int64_t count, SlicePartial* out) {
  constexpr int W = Simd<Real>::kWidth;
  Vec<Real> top = blocks[0].top;
  for (int64_t b = 1; b < count; ++b) top = max_fast(blocks[b].top, top);
  for (int l = 0; l < W; ++l) out[l] = {top[l], 0.0, 0.0};
  for (int64_t b = 0; b < count; ++b) {
    const Vec<Real> weight = weight_of<Real>(blocks[b].top, top);
    for (int l = 0; l < W; ++l) {
      const double w = weight[l];
      out[l].sum += blocks[b].sum[l] * w;
      if (kSquares) out[l].squares += blocks[b].squares[l] * (w * w);
    }
  }
}

// The chunks of one slice; a slice of one chunk keeps its bits.
SUMPROD_INLINE SlicePartial add_chunks(const SlicePartial* chunks, int64_t count) {
  SlicePartial total = {chunks[0].top, 0.0, 0.0};
  for (int64_t c = 1; c < count; ++c) total.top = chunks[c].top > total.top ? chunks[c].top : total.top;
  for (int64_t c = 0; c < count; ++c) {
    const double w = weight_of<double>(splat(chunks[c].top), splat(total.top))[0];
    total.sum += chunks[c].sum * w;
    total.squares += chunks[c].squares * (w * w);
  }
  return total;
}

template <class Real>
SUMPROD_INLINE ChunkSum<Real> narrow(const SlicePartial* parts) {
  ChunkSum<Real> result = {};
  for (int l = 0; l < Simd<Real>::kWidth; ++l) {
    result.top[l] = Real(parts[l].top);
    result.sum[l] = Real(parts[l].sum);
    result.squares[l] = Real(parts[l].squares);
  }
  return result;
}

// Out of line, so that all paths share one rounding.
template <class Real>
__attribute__((noinline)) Vec<Real> log_of_sum(Vec<Real> sum) {
  return log_nonnegative<Real>(sum);
}

template <class Source>
int64_t log_sum_exp_bytes(const SliceProblem& problem) {
  using Real = RealOf<Source>;
  const SliceShape<Real> shape(problem);
  const int64_t entries = shape.block_entries() * shape.buffer_groups() * shape.slices_per_group();
  return entries * int64_t(sizeof(Real));
}

template <class Source>
sumprod::SlicePlan plan_slices(const SliceProblem& problem) {
  const SliceShape<RealOf<Source>> shape(problem);
  return {shape.groups, shape.slices_per_group(), shape.chunks, log_sum_exp_bytes<Source>(problem)};
}

// Items [begin, end): calls finish(shape, group, index, sum) for each group, or leaves partials
// [group, lane, chunk] when slices have several chunks.
template <class Source, bool kSquares, class Finish>
SUMPROD_INLINE void sum_slices(const SliceProblem& problem, int64_t begin_item, int64_t end_item, void* workspace,
                               SlicePartial* partials, Finish finish) {
  using Real = RealOf<Source>;
  constexpr int W = Simd<Real>::kWidth;
  const SliceShape<Real> shape(problem);
  const Source* input = static_cast<const Source*>(problem.input);
  Real* buffer = static_cast<Real*>(workspace);
  const int64_t apart = shape.block_entries() * W;
  // Panels are narrow (4) when slices have many blocks, so that this many always suffice.
  constexpr int64_t kBlocks = 4 * kChunkBlocks;
  const int64_t per_group = ceil_divide(least(problem.reduced.count, kSliceChunk), kSliceBlock);
  const int64_t widest = least(shape.buffer_groups(), kBlocks / per_group);
  BlockSum<Vec<Real>> block_sums[kBlocks];
  SliceGroup<Real> groups[kPanel];
  for (int64_t item = begin_item; item < end_item;) {
    const int64_t index = item % shape.groups, chunk = item / shape.groups;
    const int panel = int(shape.panel_of(index, least(widest, end_item - item)));
    for (int p = 0; p < panel; ++p) groups[p] = shape.group(index + p);
    const int64_t last = least((chunk + 1) * kSliceChunk, problem.reduced.count);
    int64_t count = 0;
    for (int64_t begin = chunk * kSliceChunk; begin < last; begin += kSliceBlock, ++count) {
      const int64_t end = least(begin + kSliceBlock, last);
      if (shape.columns()) {
        read_columns(shape, problem.reduced, groups, panel, input, begin, end, buffer, apart);
        for (int p = 0; p < panel; ++p)
          block_sums[p * per_group + count] = sum_columns<Real, kSquares>(buffer + p * apart, end - begin);
      } else {
        const Real* row = read_row(problem.reduced, input + groups[0].base.of[kInput], begin, end, buffer);
        const BlockSum<Real> sum = sum_row<Real, kSquares>(row, end - begin);
        block_sums[count] = {splat(sum.top), splat(sum.sum), splat(sum.squares)};
      }
    }
    for (int p = 0; p < panel; ++p) {
      const BlockSum<Vec<Real>>* blocks = block_sums + p * per_group;
      if (shape.chunks == 1 && count == 1) {  // what follows would not change a bit
        finish(shape, groups[p], index + p, {blocks->top, blocks->sum, blocks->squares});
        continue;
      }
      SlicePartial parts[W];
      add_blocks<Real, kSquares>(blocks, count, parts);
      if (shape.chunks == 1) {
        finish(shape, groups[p], index + p, narrow<Real>(parts));
        continue;
      }
      const int lanes = shape.slices_per_group();
      for (int l = 0; l < lanes; ++l) partials[((index + p) * lanes + l) * shape.chunks + chunk] = parts[l];
    }
    item += panel;
  }
}

// Groups [begin, end) of slices of several chunks: combines their partials and calls finish.
template <class Real, class Finish>
SUMPROD_INLINE void combine_slices(const SliceProblem& problem, int64_t begin_group, int64_t end_group,
                                   const SlicePartial* partials, Finish finish) {
  const SliceShape<Real> shape(problem);
  const int lanes = shape.slices_per_group();
  for (int64_t index = begin_group; index < end_group; ++index) {
    SlicePartial totals[Simd<Real>::kWidth] = {};
    for (int l = 0; l < lanes; ++l) totals[l] = add_chunks(partials + (index * lanes + l) * shape.chunks, shape.chunks);
    finish(shape, shape.group(index), index, narrow<Real>(totals));
  }
}

}  // namespace
