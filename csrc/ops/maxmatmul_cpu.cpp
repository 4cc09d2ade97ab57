#include "ops/maxmatmul.h"

#include "core/product.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

namespace {

template <class Real>
using Bits = typename Simd<Real>::Bits;

// best[r, v] = max(best[r, v], max_j a[r, j] + b[j, v]) and the j that did it. Without kNan the sums
// must not be NaN; a NaN already in `best` stays in either case.
template <class Real, int kR, int kV, bool kNan>
SUMPROD_INLINE void maximise_rows(const Real* a, const Real* b, int64_t inner, int64_t first, Real* values,
                                  Bits<Real>* indices) {
  constexpr int W = Simd<Real>::kWidth;
  constexpr int64_t kA = TileShape<Real>::kLeftStride, kC = TileShape<Real>::kStride;
  Vec<Real> best[kR][kV];
  Int<Real> where[kR][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      best[r][v] = load(values + r * kC + v * W);
      __builtin_memcpy(&where[r][v], indices + r * kC + v * W, sizeof where[r][v]);
    }
  }
  Int<Real> now = Int<Real>{} + Bits<Real>(first);
  for (int64_t j = 0; j < inner; ++j, now += 1) {
    Vec<Real> right[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) right[v] = load(b + (j * kV + v) * W);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vec<Real> left = splat(a[r * kA + j]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        const Vec<Real> sum = left + right[v];
        Int<Real> better = sum > best[r][v];
        if (kNan) better |= (sum != sum) & (best[r][v] == best[r][v]);
        best[r][v] = better ? sum : best[r][v];
        where[r][v] = better ? now : where[r][v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      store(values + r * kC + v * W, best[r][v]);
      __builtin_memcpy(indices + r * kC + v * W, &where[r][v], sizeof where[r][v]);
    }
  }
}

template <class Real, bool kNan>
struct MaximiseBlock {
  template <int kR, int kV>
  static __attribute__((noinline)) void run(const Real* a, const Real* b, int64_t inner, int64_t first, Real* values,
                                            Bits<Real>* indices) {
    // A maximum and its index take two registers: half as many rows at a time.
    constexpr int kStep = kR > 1 && kR == TileShape<Real>::kRows ? kR / 2 : kR;
    for (int r = 0; r < kR; r += kStep) {
      maximise_rows<Real, kStep, kV, kNan>(a + r * TileShape<Real>::kLeftStride, b, inner, first,
                                           values + r * TileShape<Real>::kStride,
                                           indices + r * TileShape<Real>::kStride);
    }
  }
};

template <class Real>
struct MaxTile {
  static constexpr int W = Simd<Real>::kWidth;
  TileBuffers<Real> buffers;
  Bits<Real>* indices;

  explicit MaxTile(TileArena& arena) : buffers(arena), indices(arena.take<Bits<Real>>(kTileRows * kTileColumns)) {}

  void compute(const MatrixProblem& problem, const MatrixTile& tile) const {
    constexpr int64_t kA = TileShape<Real>::kLeftStride, kC = TileShape<Real>::kStride;
    const Strided<Real> x = matrix_of<Real>(problem.x, tile.batch).at(tile.row, 0);
    const Strided<Real> y = matrix_of<Real>(problem.y, tile.batch).at(0, tile.column);
    for (int64_t r = 0; r < tile.rows; ++r) {
      for (int64_t c = 0; c < round_to(tile.columns, W); ++c) {
        buffers.tile[r * kC + c] = -kInfinity<Real>;
        indices[r * kC + c] = 0;
      }
    }
    for (int64_t first = 0; first < problem.inner; first += kInnerBlock) {
      const int64_t count = smallest(kInnerBlock, problem.inner - first);
      Int<Real> special = {};  // NaN, or +inf, which may meet -inf
      const auto inspect = [&](Vec<Real> v) SUMPROD_INLINE_LAMBDA {
        special |= ~(v < kInfinity<Real>);
        return v;
      };
      for_registers(x.at(0, first), tile.rows, count, -kInfinity<Real>,
                    [&](int64_t r, int64_t l, Vec<Real> v)
                        SUMPROD_INLINE_LAMBDA { store(buffers.left + r * kA + l, inspect(v)); });
      pack_panels(y.at(first, 0), count, tile.columns, -kInfinity<Real>, buffers.right,
                  [&](int64_t, int64_t, Vec<Real> v) SUMPROD_INLINE_LAMBDA { return inspect(v); });
      if (any(special)) {
        run_blocks<Real, MaximiseBlock<Real, true>>(buffers.left, tile.rows, buffers.right, tile.columns, count, first,
                                                    buffers.tile, indices);
      } else {
        run_blocks<Real, MaximiseBlock<Real, false>>(buffers.left, tile.rows, buffers.right, tile.columns, count, first,
                                                     buffers.tile, indices);
      }
    }
  }
};

template <class Real>
int64_t run(const MaxMatmulTask& task) {
  constexpr int W = Simd<Real>::kWidth;
  TileArena arena(task.workspace);
  const MaxTile<Real> state(arena);
  if (task.workspace == nullptr) return arena.used();
  const MatrixProblem& problem = *task.problem;
  const TileGrid grid = {problem.batch, problem.rows, problem.columns};
  for (int64_t index = task.begin; index < task.end; ++index) {
    const MatrixTile tile(grid, index);
    if (tile.rows <= 0 || tile.columns <= 0) continue;
    state.compute(problem, tile);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t to = (tile.batch * problem.rows + tile.row + r) * problem.columns + tile.column;
      for (int64_t c = 0; c < tile.columns; c += W) {
        store_up_to(static_cast<Real*>(task.values) + to + c, tile.columns - c, load(state.buffers.row(r) + c));
      }
      const Bits<Real>* from = state.indices + r * TileShape<Real>::kStride;
      for (int64_t c = 0; c < tile.columns; ++c) task.indices[to + c] = from[c];
    }
  }
  return arena.used();
}

}  // namespace

int64_t maxmatmul_tiles(const MaxMatmulTask& task) {
  return task.problem->is_double ? run<double>(task) : run<float>(task);
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
