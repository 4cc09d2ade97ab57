#include "ops/logmatmulexp.h"

#include "core/product.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

namespace {

// Shifted sums below this may have lost terms to underflow.
template <class Real>
constexpr Real kLeastSum = sizeof(Real) == 4 ? Real(0x1p-80) : Real(0x1p-900);

template <class Real>
SUMPROD_INLINE Int<Real> is_infinite(Vec<Real> v) {
  return (v == kInfinity<Real>) | (v == -kInfinity<Real>);
}
template <class Real>
SUMPROD_INLINE Vec<Real> shift_of(Vec<Real> top) {
  return is_infinite<Real>(top) ? splat(Real(0)) : top;
}
// exp(v - top), with NaN wherever the maximum is +inf, so that the sum is redone.
template <class Real>
SUMPROD_INLINE Vec<Real> shifted_exp(Vec<Real> v, Vec<Real> top) {
  return exp_nonpositive<Real>(v - shift_of<Real>(top));
}
// The same with 0 for NaN and for all of a row with an infinite maximum.
template <class Real>
SUMPROD_INLINE Vec<Real> finite_exp(Vec<Real> v, Vec<Real> top) {
  const Vec<Real> e = shifted_exp<Real>(v, top);
  return (e == e) & ~is_infinite<Real>(top) ? e : splat(Real(0));
}
// exp(v) for a v that is not positive but for rounding.
template <class Real>
SUMPROD_INLINE Vec<Real> weight(Vec<Real> v) {
  return exp_nonpositive<Real>(v > Real(0) ? splat(Real(0)) : v);
}

// Shifted sums of one tile of `out`.
template <class Real>
struct SumTile {
  static constexpr int W = Simd<Real>::kWidth;
  TileBuffers<Real> buffers;
  Real *row_top, *column_top;

  explicit SumTile(TileArena& arena)
      : buffers(arena), row_top(arena.take<Real>(kTileRows + W)), column_top(arena.take<Real>(kTileColumns + W)) {}

  void compute(const MatrixProblem& problem, const MatrixTile& tile) const {
    const Strided<Real> x = matrix_of<Real>(problem.x, tile.batch).at(tile.row, 0);
    const Strided<Real> y = matrix_of<Real>(problem.y, tile.batch).at(0, tile.column);
    maxima_over_rows(x.transposed(), problem.inner, tile.rows, row_top);
    maxima_over_rows(y, problem.inner, tile.columns, column_top);
    multiply_tile(
        buffers, x, y, tile.rows, problem.inner, tile.columns,
        [&](int64_t r, int64_t, Vec<Real> v) SUMPROD_INLINE_LAMBDA { return shifted_exp<Real>(v, splat(row_top[r])); },
        [&](int64_t, int64_t l, Vec<Real> v)
            SUMPROD_INLINE_LAMBDA { return shifted_exp<Real>(v, load(column_top + l)); });
  }
};

// ---- forward ------------------------------------------------------------------------------------

// Elements redone in log space: W columns of a list of rows of one tile.
template <class Real>
struct ExactColumns {
  static constexpr int W = Simd<Real>::kWidth;
  Real *top, *sum, *right;  // [kTileRows, W] twice, [kInnerBlock, W]
  int64_t* rows;
  int64_t count = 0;

  explicit ExactColumns(TileArena& arena)
      : top(arena.take<Real>(kTileRows * W)),
        sum(arena.take<Real>(kTileRows * W)),
        right(arena.take<Real>(kInnerBlock * W)),
        rows(arena.take<int64_t>(kTileRows)) {}

  template <class Body>
  void for_terms(Strided<Real> x, Strided<Real> y, int64_t inner, int64_t lanes, Body body) {
    for (int64_t first = 0; first < inner; first += kInnerBlock) {
      const int64_t n = smallest(kInnerBlock, inner - first);
      copy_block(y.at(first, 0), n, lanes, -kInfinity<Real>, right, W);
      for (int64_t k = 0; k < count; ++k) body(k, x.at(rows[k], first), n);
    }
  }

  // x: rows of the tile; y: W columns.
  void compute(Strided<Real> x, Strided<Real> y, int64_t inner, int64_t lanes) {
    for (int64_t k = 0; k < count; ++k) {
      store(top + k * W, splat(-kInfinity<Real>));
      store(sum + k * W, Vec<Real>{});
    }
    for_terms(x, y, inner, lanes, [&](int64_t k, Strided<Real> row, int64_t n) {
      Vec<Real> best = load(top + k * W), invalid = load(sum + k * W);
      for (int64_t j = 0; j < n; ++j) {
        const Vec<Real> term = load(right + j * W) + row.p[j * row.lane];
        best = max_fast(term, best);
        invalid = term == term ? invalid : term;
      }
      store(top + k * W, best);
      store(sum + k * W, invalid);
    });
    for_terms(x, y, inner, lanes, [&](int64_t k, Strided<Real> row, int64_t n) {
      const Vec<Real> best = load(top + k * W);
      if (!any(~is_infinite<Real>(best))) return;
      Vec<Real> part = {};
      for (int64_t j = 0; j < n; ++j) {
        part += exp_nonpositive<Real>(load(right + j * W) + row.p[j * row.lane] - shift_of<Real>(best));
      }
      store(sum + k * W, load(sum + k * W) + (is_infinite<Real>(best) ? Vec<Real>{} : part));
    });
  }

  SUMPROD_INLINE Vec<Real> result(int64_t k) const {
    const Vec<Real> best = load(top + k * W), total = load(sum + k * W);
    const Vec<Real> value = is_infinite<Real>(best) ? best : best + log_nonnegative<Real>(total);
    return total == total ? value : total;
  }
};

template <class Real>
int64_t forward(const LogMatmulExpTask& task) {
  constexpr int W = Simd<Real>::kWidth;
  TileArena arena(task.workspace);
  const SumTile<Real> sums(arena);
  ExactColumns<Real> exact(arena);
  if (task.workspace == nullptr) return arena.used();
  const FlushDenormals flush;
  const MatrixProblem& problem = *task.problem;
  const TileGrid grid = {problem.batch, problem.rows, problem.columns};
  for (int64_t index = task.begin; index < task.end; ++index) {
    const MatrixTile tile(grid, index);
    if (tile.rows <= 0 || tile.columns <= 0) continue;
    sums.compute(problem, tile);
    const Strided<Real> x = matrix_of<Real>(problem.x, tile.batch).at(tile.row, 0);
    const Strided<Real> y = matrix_of<Real>(problem.y, tile.batch).at(0, tile.column);
    Real* out = static_cast<Real*>(task.out) + (tile.batch * problem.rows + tile.row) * problem.columns + tile.column;
    for (int64_t c = 0; c < tile.columns; c += W) {
      const int64_t lanes = smallest(W, tile.columns - c);
      const Vec<Real> column_top = load(sums.column_top + c);
      const Int<Real> used = lanes_below<Real>(lanes);
      exact.count = 0;
      for (int64_t r = 0; r < tile.rows; ++r) {
        const Vec<Real> sum = load(sums.buffers.row(r) + c);
        store_up_to(out + r * problem.columns + c, lanes, log_nonnegative<Real>(sum) + (column_top + sums.row_top[r]));
        if (any(~(sum >= kLeastSum<Real>)&used)) exact.rows[exact.count++] = r;
      }
      if (exact.count == 0) continue;
      exact.compute(x, y.at(0, c), problem.inner, lanes);
      for (int64_t k = 0; k < exact.count; ++k) {
        const int64_t r = exact.rows[k];
        const Vec<Real> sum = load(sums.buffers.row(r) + c);
        Real* to = out + r * problem.columns + c;
        store_up_to(to, lanes, sum >= kLeastSum<Real> ? load_up_to(to, lanes, Real(0)) : exact.result(k));
      }
    }
  }
  return arena.used();
}

// ---- backward -----------------------------------------------------------------------------------

template <class Real>
class Backward {
 public:
  static constexpr int W = Simd<Real>::kWidth;

  explicit Backward(const LogMatmulExpBackwardTask& task)
      : task_(task),
        problem_(*task.problem),
        arena_(task.workspace),
        sums_(arena_),
        buffers_(sums_.buffers),
        raw_(arena_.take<Real>(kTileRows * kTileColumns)),
        inner_(problem_.inner),
        columns_(problem_.columns) {}

  int64_t bytes() const { return arena_.used(); }

  void scale_tiles() {
    const TileGrid grid = {problem_.batch, problem_.rows, columns_};
    for (int64_t index = task_.begin; index < task_.end; ++index) {
      const MatrixTile tile(grid, index);
      task_.exact[index] = tile.rows > 0 && tile.columns > 0 && scale(tile);
    }
  }

  void grad_x_tiles() {
    const TileGrid grid = {problem_.batch, problem_.rows, inner_};
    for (int64_t index = task_.begin; index < task_.end; ++index) {
      const MatrixTile tile(grid, index);
      if (tile.rows > 0 && tile.columns > 0) grad_x(tile);
    }
  }

  void grad_y_tiles() {
    const TileGrid grid = {problem_.batch, inner_, columns_};
    for (int64_t index = task_.begin; index < task_.end; ++index) {
      const MatrixTile tile(grid, index);
      if (tile.rows > 0 && tile.columns > 0) grad_y(tile);
    }
  }

 private:
  // Element (i, k) of an array of the shape of `out`.
  int64_t place(int64_t batch, int64_t i, int64_t k) const { return (batch * problem_.rows + i) * columns_ + k; }
  const Real* grad(int64_t place) const { return static_cast<const Real*>(task_.grad) + place; }
  const Real* out(int64_t place) const { return static_cast<const Real*>(task_.out) + place; }
  Real* scaled(int64_t place) const { return static_cast<Real*>(task_.scaled) + place; }
  Real* row_top(int64_t batch) const { return static_cast<Real*>(task_.row_top) + batch * problem_.rows; }
  Real* column_top(int64_t batch) const { return static_cast<Real*>(task_.column_top) + batch * columns_; }
  bool any_exact(int64_t batch) const {
    const int64_t each = TileGrid{problem_.batch, problem_.rows, columns_}.per_matrix();
    for (int64_t t = 0; t < each; ++t) {
      if (task_.exact[batch * each + t]) return true;
    }
    return false;
  }

  bool scale(const MatrixTile& tile) {
    sums_.compute(problem_, tile);
    if (tile.column == 0) {
      for (int64_t r = 0; r < tile.rows; ++r) row_top(tile.batch)[tile.row + r] = sums_.row_top[r];
    }
    if (tile.row == 0) {
      for (int64_t c = 0; c < tile.columns; ++c) column_top(tile.batch)[tile.column + c] = sums_.column_top[c];
    }
    bool marked = false;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t first = place(tile.batch, tile.row + r, tile.column);
      for (int64_t c = 0; c < tile.columns; c += W) {
        const int64_t lanes = smallest(W, tile.columns - c);
        const Vec<Real> sum = load(buffers_.row(r) + c), g = load_up_to(grad(first + c), lanes, Real(0));
        const Vec<Real> value = load_up_to(out(first + c), lanes, -kInfinity<Real>);
        Vec<Real> h = g / sum;
        h = (sum >= kLeastSum<Real>)&~is_infinite<Real>(h) ? h : splat(Real(__builtin_nan("")));
        h = value == -kInfinity<Real> ? Vec<Real>{} : h;
        marked = marked || any(h != h);
        store_up_to(scaled(first + c), lanes, h);
      }
    }
    return marked;
  }

  static SUMPROD_INLINE Vec<Real> unmarked(Vec<Real> h) { return h == h ? h : Vec<Real>{}; }

  void store_tile(const MatrixTile& tile, Real* to, int64_t stride) const {
    for (int64_t r = 0; r < tile.rows; ++r) {
      for (int64_t c = 0; c < tile.columns; c += W)
        store_up_to(to + r * stride + c, tile.columns - c, load(buffers_.row(r) + c));
    }
  }

  // Rows i and columns j of grad_x.
  void grad_x(const MatrixTile& tile) {
    const int64_t b = tile.batch;
    const Strided<Real> x = matrix_of<Real>(problem_.x, b).at(tile.row, tile.column);
    const Strided<Real> y = matrix_of<Real>(problem_.y, b).at(tile.column, 0).transposed();
    const Real *tops = row_top(b) + tile.row, *right_tops = column_top(b);
    multiply_tile(
        buffers_, Strided<Real>{scaled(place(b, tile.row, 0)), columns_, 1}, y, tile.rows, columns_, tile.columns,
        [&](int64_t, int64_t, Vec<Real> h) SUMPROD_INLINE_LAMBDA { return unmarked(h); },
        [&](int64_t r, int64_t, Vec<Real> v)
            SUMPROD_INLINE_LAMBDA { return finite_exp<Real>(v, splat(right_tops[r])); });
    for_registers(x, tile.rows, tile.columns, -kInfinity<Real>,
                  [&](int64_t r, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA {
                    store(buffers_.row(r) + l, load(buffers_.row(r) + l) * finite_exp<Real>(v, splat(tops[r])));
                  });
    if (any_exact(b)) exact_x(tile, x, y);
    store_tile(tile, static_cast<Real*>(task_.grad_x) + (b * problem_.rows + tile.row) * inner_ + tile.column, inner_);
  }

  // Number of +inf terms of element (i, k).
  Real infinite_terms(int64_t b, int64_t i, int64_t k) const {
    const Strided<Real> x = matrix_of<Real>(problem_.x, b).at(i, 0), y = matrix_of<Real>(problem_.y, b).at(0, k);
    Real count = 0;
    for (int64_t j = 0; j < inner_; ++j) count += x.p[j * x.lane] + y.p[j * y.row] == kInfinity<Real>;
    return count;
  }

  // Marked elements: lanes along j, one (i, k) at a time.
  void exact_x(const MatrixTile& tile, Strided<Real> x, Strided<Real> y) {
    const int64_t b = tile.batch;
    copy_block(x, tile.rows, tile.columns, -kInfinity<Real>, raw_, kTileColumns);
    for (int64_t first = 0; first < columns_; first += kInnerBlock) {
      const int64_t n = smallest(kInnerBlock, columns_ - first);
      copy_block(y.at(first, 0), n, tile.columns, -kInfinity<Real>, buffers_.right, kTileColumns);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t at = place(b, tile.row + r, first);
        for (int64_t k = 0; k < n; ++k) {
          const Real h = *scaled(at + k);
          if (h == h) continue;
          const Real value = *out(at + k), g = *grad(at + k);
          const bool infinite = value == kInfinity<Real>;
          const Real share = infinite ? g / infinite_terms(b, tile.row + r, first + k) : Real(0);
          for (int64_t c = 0; c < tile.columns; c += W) {
            const Vec<Real> term = load(raw_ + r * kTileColumns + c) + load(buffers_.right + k * kTileColumns + c);
            Vec<Real> part = g * weight<Real>(term - value);
            if (infinite) part = term == kInfinity<Real> ? splat(share) : Vec<Real>{};
            store(buffers_.row(r) + c, load(buffers_.row(r) + c) + part);
          }
        }
      }
    }
  }

  // Rows j and columns k of grad_y.
  void grad_y(const MatrixTile& tile) {
    const int64_t b = tile.batch;
    const Strided<Real> x = matrix_of<Real>(problem_.x, b).at(0, tile.row).transposed();
    const Strided<Real> y = matrix_of<Real>(problem_.y, b).at(tile.row, tile.column);
    const Real *tops = column_top(b) + tile.column, *left_tops = row_top(b);
    multiply_tile(
        buffers_, x, Strided<Real>{scaled(place(b, 0, tile.column)), columns_, 1}, tile.rows, problem_.rows,
        tile.columns,
        [&](int64_t, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA { return finite_exp<Real>(v, load(left_tops + l)); },
        [&](int64_t, int64_t, Vec<Real> h) SUMPROD_INLINE_LAMBDA { return unmarked(h); });
    for_registers(y, tile.rows, tile.columns, -kInfinity<Real>,
                  [&](int64_t r, int64_t l, Vec<Real> v) SUMPROD_INLINE_LAMBDA {
                    store(buffers_.row(r) + l, load(buffers_.row(r) + l) * finite_exp<Real>(v, load(tops + l)));
                  });
    if (any_exact(b)) exact_y(tile, y);
    store_tile(tile, static_cast<Real*>(task_.grad_y) + (b * inner_ + tile.row) * columns_ + tile.column, columns_);
  }

  // Marked elements: lanes along k, one row i at a time.
  void exact_y(const MatrixTile& tile, Strided<Real> y) {
    const int64_t b = tile.batch;
    const Strided<Real> x = matrix_of<Real>(problem_.x, b);
    copy_block(y, tile.rows, tile.columns, -kInfinity<Real>, raw_, kTileColumns);
    for (int64_t i = 0; i < problem_.rows; ++i) {
      for (int64_t c = 0; c < tile.columns; c += W) {
        const int64_t at = place(b, i, tile.column + c), lanes = smallest(W, tile.columns - c);
        const Vec<Real> h = load_up_to(scaled(at), lanes, Real(0));
        if (!any(h != h)) continue;
        const Vec<Real> g = h == h ? Vec<Real>{} : load_up_to(grad(at), lanes, Real(0));
        const Vec<Real> value = h == h ? Vec<Real>{} : load_up_to(out(at), lanes, Real(0));
        const Int<Real> infinite = value == kInfinity<Real>;
        Vec<Real> share = {};
        for (int l = 0; l < W; ++l) {
          if (infinite[l]) share[l] = g[l] / infinite_terms(b, i, tile.column + c + l);
        }
        for (int64_t r = 0; r < tile.rows; ++r) {
          const Vec<Real> term = load(raw_ + r * kTileColumns + c) + *x.at(i, tile.row + r).p;
          Vec<Real> part = g * weight<Real>(term - value);
          part = infinite ? (term == kInfinity<Real> ? share : Vec<Real>{}) : part;
          store(buffers_.row(r) + c, load(buffers_.row(r) + c) + (h == h ? Vec<Real>{} : part));
        }
      }
    }
  }

  const LogMatmulExpBackwardTask& task_;
  const MatrixProblem& problem_;
  TileArena arena_;
  const SumTile<Real> sums_;
  const TileBuffers<Real>& buffers_;
  Real* const raw_;
  const int64_t inner_, columns_;
};

template <class F>
SUMPROD_INLINE int64_t run_backward(const LogMatmulExpBackwardTask& task, F f) {
  const auto run = [&]<class Real>() {
    Backward<Real> backward(task);
    if (task.workspace == nullptr) return backward.bytes();
    const FlushDenormals flush;
    f(backward);
    return backward.bytes();
  };
  return task.problem->is_double ? run.template operator()<double>() : run.template operator()<float>();
}

}  // namespace

int64_t logmatmulexp_tiles(const LogMatmulExpTask& task) {
  return task.problem->is_double ? forward<double>(task) : forward<float>(task);
}

int64_t logmatmulexp_scale_tiles(const LogMatmulExpBackwardTask& task) {
  return run_backward(task, [](auto& backward) { backward.scale_tiles(); });
}

int64_t logmatmulexp_grad_x_tiles(const LogMatmulExpBackwardTask& task) {
  return run_backward(task, [](auto& backward) { backward.grad_x_tiles(); });
}

int64_t logmatmulexp_grad_y_tiles(const LogMatmulExpBackwardTask& task) {
  return run_backward(task, [](auto& backward) { backward.grad_y_tiles(); });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
