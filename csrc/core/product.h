// Tiles of matrix products: strided operands are copied block by block into rows of registers,
// transformed there (exponentiated, say), and multiplied with accumulators held in registers.
#pragma once

#include "core/exp_log.h"
#include "core/matrix_problem.h"

namespace {

using sumprod::kTileColumns;
using sumprod::kTileRows;
using sumprod::MatrixProblem;
using sumprod::TileGrid;

// Entries of the summed index that are summed before they are added to the total.
constexpr int64_t kInnerBlock = 128;

template <class Real>
struct TileShape {
  static constexpr int W = Simd<Real>::kWidth;
  // Rows and registers of accumulators: 24 of AVX-512's 32 registers, 12 or 8 of the others' 16.
  static constexpr int kRows = SUMPROD_VECTOR_BYTES == 64 ? 8 : 4;
  static constexpr int kVectors = SUMPROD_VECTOR_BYTES >= 32 ? 3 : 2;
  static constexpr int64_t kStride = kTileColumns;     // of a tile held in the workspace
  static constexpr int64_t kLeftStride = kInnerBlock;  // of a block of the left operand
  static_assert(kTileColumns % W == 0 && kInnerBlock % W == 0);
};

constexpr int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t round_to(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows [row, row + rows) and columns likewise of the matrix of one batch element.
struct MatrixTile {
  int64_t batch, row, rows, column, columns;

  MatrixTile(const TileGrid& grid, int64_t index) {
    const int64_t across = TileGrid::cuts(grid.columns, kTileColumns), each = grid.per_matrix();
    batch = index / each;
    place(grid.rows, kTileRows, index % each / across, row, rows);
    place(grid.columns, kTileColumns, index % each % across, column, columns);
  }

 private:
  static void place(int64_t n, int64_t most, int64_t index, int64_t& first, int64_t& count) {
    constexpr int64_t kUnit = 48;  // whole register blocks at every level
    const int64_t cuts = TileGrid::cuts(n, most), size = round_to((n + cuts - 1) / cuts, kUnit);
    first = smallest(index * size, n);
    count = smallest(size, n - first);
  }
};

// Bump allocator over the caller's workspace; with a null base it only measures.
class TileArena {
 public:
  explicit TileArena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* p = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_to(count * int64_t(sizeof(T)), 64);
    return reinterpret_cast<T*>(p);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// A strided matrix; `lane` runs along registers.
template <class Real>
struct Strided {
  const Real* p;
  int64_t row, lane;

  SUMPROD_INLINE Strided at(int64_t r, int64_t l) const { return {p + r * row + l * lane, row, lane}; }
  SUMPROD_INLINE Strided transposed() const { return {p, lane, row}; }
};

template <class Real>
SUMPROD_INLINE Strided<Real> matrix_of(const sumprod::MatrixOperand& operand, int64_t batch) {
  return {static_cast<const Real*>(operand.data) + operand.offsets[batch], operand.row_stride, operand.column_stride};
}

template <class Real>
SUMPROD_INLINE Vec<Real> load_up_to(const Real* p, int64_t count, Real fill) {
  return count >= Simd<Real>::kWidth ? load(p) : load_partial(p, count, fill);
}

template <class Real>
SUMPROD_INLINE void store_up_to(Real* p, int64_t count, Vec<Real> v) {
  if (count >= Simd<Real>::kWidth) return store(p, v);
  store_partial(p, count, v);
}

// Calls put(r, l, register) for every row r and every W-th lane l of a strided matrix; lanes past
// the end hold `fill`.
template <class Real, class Put>
SUMPROD_INLINE void for_registers(Strided<Real> from, int64_t rows, int64_t lanes, Real fill, Put put) {
  constexpr int W = Simd<Real>::kWidth;
  if (from.lane == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t l = 0; l < lanes; l += W) put(r, l, load_up_to(from.p + r * from.row + l, lanes - l, fill));
    }
  } else if (from.row == 1) {
    for (int64_t l = 0; l < lanes; l += W) {
      for (int64_t r = 0; r < rows; r += W) {
        Vec<Real> square[W];
        for (int i = 0; i < W; ++i) {
          square[i] = l + i < lanes ? load_up_to(from.p + (l + i) * from.lane + r, rows - r, fill) : splat(fill);
        }
        transpose<Real>(square);
        const int64_t count = smallest(W, rows - r);
        for (int64_t i = 0; i < count; ++i) put(r + i, l, square[i]);
      }
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t l = 0; l < lanes; l += W) {
        Real part[W];
        for (int i = 0; i < W; ++i) part[i] = l + i < lanes ? from.p[r * from.row + (l + i) * from.lane] : fill;
        put(r, l, load(part));
      }
    }
  }
}

template <class Real>
void copy_block(Strided<Real> from, int64_t rows, int64_t lanes, Real fill, Real* to, int64_t stride) {
  for_registers(from, rows, lanes, fill,
                [&](int64_t r, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA { store(to + r * stride + l, v); });
}

// Maxima over the rows of a strided matrix, one per lane; NaN is passed over. `out` is padded to
// whole registers; no rows give -inf.
template <class Real>
void maxima_over_rows(Strided<Real> from, int64_t rows, int64_t lanes, Real* out) {
  constexpr int W = Simd<Real>::kWidth;
  for (int64_t l = 0; l < lanes; l += W) store(out + l, splat(-kInfinity<Real>));
  for_registers(from, rows, lanes, -kInfinity<Real>, [&](int64_t, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA {
    store(out + l, max_fast(v, load(out + l)));
  });
}

// Copies a matrix into panels of kVectors registers: panel by panel, row by row.
template <class Real, class Transform>
SUMPROD_INLINE void pack_panels(Strided<Real> from, int64_t rows, int64_t lanes, Real fill, Real* to,
                                Transform transform) {
  constexpr int W = Simd<Real>::kWidth;
  constexpr int64_t kPanel = TileShape<Real>::kVectors * W;
  for_registers(from, rows, lanes, fill, [&](int64_t r, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA {
    const int64_t panel = l / kPanel * kPanel, width = smallest(kPanel, round_to(lanes - panel, W));
    store(to + panel * rows + r * width + (l - panel), transform(r, l, v));
  });
}

// c[r, v] += sum_j a[r, j] b[j, v] for kR rows and kV registers.
template <class Real, int kR, int kV>
__attribute__((noinline)) void multiply_block(const Real* a, const Real* b, int64_t inner, Real* c) {
  constexpr int W = Simd<Real>::kWidth;
  constexpr int64_t kA = TileShape<Real>::kLeftStride, kC = TileShape<Real>::kStride;
  Vec<Real> sum[kR][kV] = {};
  for (int64_t j = 0; j < inner; ++j) {
    Vec<Real> right[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) right[v] = load(b + (j * kV + v) * W);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vec<Real> left = splat(a[r * kA + j]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(c + r * kC + v * W, load(c + r * kC + v * W) + sum[r][v]);
  }
}

template <class Real>
struct MultiplyBlock {
  template <int kR, int kV>
  static SUMPROD_INLINE void run(const Real* a, const Real* b, int64_t inner, int64_t, Real* c) {
    multiply_block<Real, kR, kV>(a, b, inner, c);
  }
};

// Runs Block over all register blocks of a tile: left rows with stride kLeftStride, right panels.
template <class Real, class Block, int kV, class... Tail>
SUMPROD_INLINE void run_panel(const Real* left, int64_t rows, const Real* right, int64_t inner, int64_t first,
                              Real* tile, Tail... tail) {
  constexpr int64_t kA = TileShape<Real>::kLeftStride, kC = TileShape<Real>::kStride;
  int64_t r = 0;
  const auto step = [&]<int kR>() SUMPROD_INLINE_LAMBDA {
    if constexpr (kR <= TileShape<Real>::kRows) {
      for (; r + kR <= rows; r += kR) {
        Block::template run<kR, kV>(left + r * kA, right, inner, first, tile + r * kC, (tail + r * kC)...);
      }
    }
  };
  step.template operator()<8>();
  step.template operator()<4>();
  step.template operator()<2>();
  step.template operator()<1>();
}

template <class Real, class Block, class... Tail>
void run_blocks(const Real* left, int64_t rows, const Real* right, int64_t columns, int64_t inner, int64_t first,
                Real* tile, Tail... tail) {
  constexpr int W = Simd<Real>::kWidth;
  constexpr int64_t kPanel = TileShape<Real>::kVectors * W;
  for (int64_t c = 0; c < columns; c += kPanel) {
    const int64_t vectors = (smallest(kPanel, columns - c) + W - 1) / W;
    const Real* panel = right + c * inner;
    if (vectors == 1) run_panel<Real, Block, 1>(left, rows, panel, inner, first, tile + c, (tail + c)...);
    if (vectors == 2) run_panel<Real, Block, 2>(left, rows, panel, inner, first, tile + c, (tail + c)...);
    if constexpr (TileShape<Real>::kVectors == 3) {
      if (vectors == 3) run_panel<Real, Block, 3>(left, rows, panel, inner, first, tile + c, (tail + c)...);
    }
  }
}

// Room for one tile of a product: the tile, and a block of each operand.
template <class Real>
struct TileBuffers {
  Real *tile, *left, *right;

  explicit TileBuffers(TileArena& arena)
      : tile(arena.take<Real>(kTileRows * kTileColumns)),
        left(arena.take<Real>(kTileRows * kInnerBlock)),
        right(arena.take<Real>(kInnerBlock * kTileColumns)) {}

  SUMPROD_INLINE Real* row(int64_t r) const { return tile + r * TileShape<Real>::kStride; }
  void clear(int64_t rows, int64_t columns) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; c += Simd<Real>::kWidth) store(row(r) + c, Vec<Real>{});
    }
  }
};

// tile = left right, with left [rows, inner] (lanes along the inner index) and right
// [inner, columns] (lanes along the columns), each transformed as it is read:
// value = transform(row, lane, register).
template <class Real, class Left, class Right>
SUMPROD_INLINE void multiply_tile(const TileBuffers<Real>& buffers, Strided<Real> left, Strided<Real> right,
                                  int64_t rows, int64_t inner, int64_t columns, Left left_transform,
                                  Right right_transform) {
  buffers.clear(rows, columns);
  for (int64_t first = 0; first < inner; first += kInnerBlock) {
    const int64_t count = smallest(kInnerBlock, inner - first);
    for_registers(left.at(0, first), rows, count, -kInfinity<Real>,
                  [&](int64_t r, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA {
                    store(buffers.left + r * TileShape<Real>::kLeftStride + l, left_transform(r, first + l, v));
                  });
    pack_panels(right.at(first, 0), count, columns, -kInfinity<Real>, buffers.right,
                [&](int64_t r, int64_t l, Vec<Real> v)
                    SUMPROD_INLINE_LAMBDA { return right_transform(first + r, l, v); });
    run_blocks<Real, MultiplyBlock<Real>>(buffers.left, rows, buffers.right, columns, count, first, buffers.tile);
  }
}

}  // namespace
