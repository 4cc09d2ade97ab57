#include "ops/logmatmulexp.h"

#include "gpu/matrix_tiles.cuh"

namespace sumprod {

namespace {

using namespace gpu;

// Shifted sums below this may have lost terms to underflow.
template <class Real>
SUMPROD_DEVICE constexpr Real least_sum() {
  return sizeof(Real) == 4 ? Real(8.2718061255302767e-25) : Real(1.1830521861667747e-271);  // 2^-80, 2^-900
}
template <class Real>
SUMPROD_DEVICE bool is_infinite(Real x) {
  return x == infinity<Real>() || x == -infinity<Real>();
}
template <class Real>
SUMPROD_DEVICE Real not_a_number() {
  return Real(__builtin_nanf(""));
}
// exp(v - top), with NaN wherever the maximum is +inf, so that the sum is redone.
template <class Real>
SUMPROD_DEVICE Real shifted_exp(Real v, Real top) {
  const Real e = exp(v - (top == -infinity<Real>() ? Real(0) : top));
  return top == infinity<Real>() ? not_a_number<Real>() : e;
}
// The same with 0 for NaN and for all of a row with an infinite maximum.
template <class Real>
SUMPROD_DEVICE Real finite_exp(Real v, Real top) {
  const Real e = exp(v - top);
  return e == e && !is_infinite(top) ? e : Real(0);
}
// exp(v) for a v that is not positive but for rounding.
template <class Real>
SUMPROD_DEVICE Real weight(Real v) {
  return exp(v > Real(0) ? Real(0) : v);
}

// ---- maxima of rows of x and columns of y -------------------------------------------------------

// Maxima of the lines of some matrices; NaN is passed over, and no elements give -inf.
struct TopsOf {
  const void* data;
  int64_t matrices, lines, length;
  int64_t line_stride, stride;  // from line to line, and along one
};
struct TopsTask {
  MatrixBatch batch;
  TopsOf x, y;
  int64_t x_blocks;
  void* tops;
  int slices;  // threads that share a line
};

constexpr int kTopThreads = 256;

// Where the matrix number `index` among the distinct ones starts.
SUMPROD_DEVICE int64_t distinct_offset(const MatrixBatch& batch, const MatrixBatch::Operand& operand, int64_t index) {
  int64_t offset = 0;
  for (int d = batch.dims - 1; d >= 0; --d) {
    if (operand.stride[d] == 0) continue;
    offset += index % batch.size[d] * operand.stride[d];
    index /= batch.size[d];
  }
  return offset;
}

template <class Real>
__global__ void __launch_bounds__(kTopThreads) tops_kernel(const TopsTask task) {
  Real* shared = reinterpret_cast<Real*>(shared_memory());  // [slices, lines + 1]
  const bool is_x = int64_t(blockIdx.x) < task.x_blocks;
  const TopsOf& of = is_x ? task.x : task.y;
  const int slices = task.slices, lines = kTopThreads / slices, thread = int(threadIdx.x);
  const int64_t first = (int64_t(blockIdx.x) - (is_x ? 0 : task.x_blocks)) * lines, all = of.matrices * of.lines;
  // Neighbouring threads read neighbouring elements.
  const bool along = of.stride <= of.line_stride;
  const int slice = along ? thread % slices : thread / lines, line = along ? thread / slices : thread % lines;
  Real best = -infinity<Real>();
  if (first + line < all) {
    const int64_t matrix = (first + line) / of.lines;
    const Real* p = static_cast<const Real*>(of.data) +
                    distinct_offset(task.batch, is_x ? task.batch.x : task.batch.y, matrix) +
                    (first + line) % of.lines * of.line_stride;
#pragma unroll 8
    for (int64_t j = slice; j < of.length; j += slices) best = larger(p[j * of.stride], best);
  }
  shared[slice * (lines + 1) + line] = best;
  __syncthreads();
  if (thread >= lines || first + thread >= all) return;
  for (int s = 0; s < slices; ++s) best = larger(shared[s * (lines + 1) + thread], s == 0 ? -infinity<Real>() : best);
  static_cast<Real*>(task.tops)[(is_x ? 0 : task.x.matrices * task.x.lines) + first + thread] = best;
}

template <class Real>
void launch_tops(const MatrixProblem& p, const MatrixBatch& batch, void* tops, const Stream& stream) {
  constexpr int64_t kShort = 64;  // lines up to here are shared by fewer threads; estimated
  const int slices = p.inner <= kShort ? 8 : 32, lines = kTopThreads / slices;
  const TopsOf x{p.x.data, batch.x.distinct, p.rows, p.inner, p.x.row_stride, p.x.column_stride};
  const TopsOf y{p.y.data, batch.y.distinct, p.columns, p.inner, p.y.column_stride, p.y.row_stride};
  const int64_t x_blocks = tile_cuts(x.matrices * x.lines, lines), y_blocks = tile_cuts(y.matrices * y.lines, lines);
  launch(tops_kernel<Real>, {x_blocks + y_blocks, kTopThreads, int64_t(sizeof(Real)) * slices * (lines + 1)}, stream,
         TopsTask{batch, x, y, x_blocks, tops, slices});
}

// ---- sums ---------------------------------------------------------------------------------------

struct SumsTask {
  MatrixProblem problem;
  MatrixBatch batch;
  const void *row_tops, *column_tops;  // [distinct, rows], [distinct, columns]
  void* result;                        // [batch, rows, columns]: the logs of the sums, or h where `grad` is given
  const void *grad, *value;            // the same shape
};

// Elements of a tile redone in log space, from the operands as they are; `bad` has a bit for each of a thread's.
template <class T>
SUMPROD_DEVICE void redo_sums(const TilePlace<T>& place, const Strip<typename T::Real>& left,
                              const Strip<typename T::Real>& right, const ResultTile<T>& result, uint64_t bad) {
  using Real = typename T::Real;
  const auto as_is = [](Real v, int, int64_t) { return v; };
  Real best[T::kEach][T::kEach];
#pragma unroll
  for (int r = 0; r < T::kEach; ++r) {
#pragma unroll
    for (int c = 0; c < T::kEach; ++c) best[r][c] = -infinity<Real>();
  }
  for_depth<T>(place, left, right, -infinity<Real>(), as_is, as_is, [&](const Real* a, const Real* b, int64_t) {
    for_products<T>(result, a, b, [&](int r, int c, Real x, Real y, int) {
      const Real term = x + y;
      best[r][c] = term > best[r][c] || term != term ? term : best[r][c];  // NaN stays
    });
  });
  uint64_t finite = 0;  // elements that need a sum
  result.for_each([&](int r, int c, int64_t offset) {
    const int e = r * T::kEach + c;
    if ((bad >> e & 1) == 0) return;
    result.data[offset] = best[r][c];
    if (best[r][c] == best[r][c] && !is_infinite(best[r][c])) finite |= uint64_t(1) << e;
  });
  if (!__syncthreads_or(finite != 0)) return;

  Real sum[T::kEach * T::kEach] = {};
  for_depth<T>(place, left, right, -infinity<Real>(), as_is, as_is, [&](const Real* a, const Real* b, int64_t) {
    for (int e = 0; e < T::kEach * T::kEach; ++e) {
      if ((finite >> e & 1) == 0) continue;
      const int r = e / T::kEach, c = e % T::kEach;
      const Real top = result.data[result.offset(r, c)];
      Real part = 0;
      for (int d = 0; d < kDepth; ++d) {
        part += exp(a[d * T::kStride + result.row(r)] + b[d * T::kStride + result.column(c)] - top);
      }
      sum[e] += part;
    }
  });
  for (int e = 0; e < T::kEach * T::kEach; ++e) {
    if ((finite >> e & 1) != 0) result.data[result.offset(e / T::kEach, e % T::kEach)] += log(sum[e]);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) sums_kernel(const SumsTask task) {
  using Real = typename T::Real;
  const MatrixProblem& p = task.problem;
  const TilePlace<T> place(p.batch, p.rows, p.columns);
  const BatchPlace at(task.batch, place.batch);
  const Strip<Real> left{static_cast<const Real*>(p.x.data) + at.x + place.row * p.x.row_stride, p.x.row_stride,
                         p.x.column_stride, place.rows, p.inner};
  const Strip<Real> right{static_cast<const Real*>(p.y.data) + at.y + place.column * p.y.column_stride,
                          p.y.column_stride, p.y.row_stride, place.columns, p.inner};
  const Real* row_tops = static_cast<const Real*>(task.row_tops) + at.x_index * p.rows + place.row;
  const Real* column_tops = static_cast<const Real*>(task.column_tops) + at.y_index * p.columns + place.column;
  const int64_t matrix = place.batch * p.rows * p.columns;
  const ResultTile<T> result(place, static_cast<Real*>(task.result) + matrix, p.columns, true);

  Real sum[T::kEach][T::kEach];
  multiply<T>(
      place, left, right, result, [&](Real v, int outer, int64_t) { return shifted_exp(v, row_tops[outer]); },
      [&](Real v, int outer, int64_t) { return shifted_exp(v, column_tops[outer]); }, sum);

  if (task.grad != nullptr) {
    const int64_t tile = matrix + place.row * p.columns + place.column;
    const Real* grad = static_cast<const Real*>(task.grad) + tile;
    const Real* value = static_cast<const Real*>(task.value) + tile;
    result.for_each([&](int r, int c, int64_t to) {
      const Real h = grad[to] / sum[r][c];
      const bool good = sum[r][c] >= least_sum<Real>() && !is_infinite(h);
      sum[r][c] = value[to] == -infinity<Real>() ? Real(0) : good ? h : not_a_number<Real>();
    });
    result.store([&](int r, int c) { return sum[r][c]; });
    return;
  }
  uint64_t bad = 0;
  result.for_each([&](int r, int c, int64_t) {
    if (!(sum[r][c] >= least_sum<Real>())) bad |= uint64_t(1) << (r * T::kEach + c);
    sum[r][c] = log(sum[r][c]) + (column_tops[result.column(c)] + row_tops[result.row(r)]);
  });
  result.store([&](int r, int c) { return sum[r][c]; });
  if (__syncthreads_or(bad != 0)) redo_sums(place, left, right, result, bad);
}

// ---- gradient -----------------------------------------------------------------------------------

// grad_x. That of y is the same for the transposed matrices: out^T = y^T x^T.
struct GradientTask {
  MatrixProblem problem;
  MatrixBatch batch;
  const void *row_tops, *column_tops;
  const void *scaled, *grad, *value;  // of the shape of out, with these strides
  int64_t product_row_stride, product_column_stride;
  void* result;  // [batch, rows, inner], with this stride from row to row, or from column to column
  int64_t result_line;
  bool result_by_rows;
};

// Terms of marked elements of out, (i, k), added to elements (i, j) of the result.
template <class T>
struct MarkedTerms {
  using Real = typename T::Real;
  const GradientTask& task;
  const ResultTile<T>& result;
  const Real *x, *y;  // of the batch element
  const Real *grad, *value;
  int64_t row, column;  // of the tile

  SUMPROD_DEVICE Real x_at(int64_t i, int64_t j) const {
    return x[i * task.problem.x.row_stride + j * task.problem.x.column_stride];
  }
  SUMPROD_DEVICE Real y_at(int64_t j, int64_t k) const {
    return y[j * task.problem.y.row_stride + k * task.problem.y.column_stride];
  }
  // What all +inf terms of element (i, k) share.
  SUMPROD_DEVICE Real infinite_terms(int64_t i, int64_t k) const {
    Real count = 0;
    for (int64_t j = 0; j < task.problem.inner; ++j) count += x_at(i, j) + y_at(j, k) == infinity<Real>() ? 1 : 0;
    return count;
  }
  SUMPROD_DEVICE void add(int r, int64_t k) const {
    const int64_t i = row + result.row(r);
    const int64_t at = i * task.product_row_stride + k * task.product_column_stride;
    const Real g = grad[at], total = value[at];
    const bool infinite = total == infinity<Real>();
    const Real share = infinite ? g / infinite_terms(i, k) : Real(0);
    for (int c = 0; c < T::kEach; ++c) {
      if (!result.exists(r, c)) continue;
      const int64_t j = column + result.column(c);
      const Real term = x_at(i, j) + y_at(j, k);
      const Real part = infinite ? (term == infinity<Real>() ? share : Real(0)) : g * weight(term - total);
      result.data[result.offset(r, c)] += part;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) gradient_kernel(const GradientTask task) {
  using Real = typename T::Real;
  const MatrixProblem& p = task.problem;
  const TilePlace<T> place(p.batch, p.rows, p.inner);
  const BatchPlace at(task.batch, place.batch);
  const int64_t product = place.batch * p.rows * p.columns;
  const Real *x = static_cast<const Real*>(p.x.data) + at.x, *y = static_cast<const Real*>(p.y.data) + at.y;
  const Strip<Real> left{static_cast<const Real*>(task.scaled) + product + place.row * task.product_row_stride,
                         task.product_row_stride, task.product_column_stride, place.rows, p.columns};
  const Strip<Real> right{y + place.column * p.y.row_stride, p.y.row_stride, p.y.column_stride, place.columns,
                          p.columns};
  const Real* row_tops = static_cast<const Real*>(task.row_tops) + at.x_index * p.rows + place.row;
  const Real* column_tops = static_cast<const Real*>(task.column_tops) + at.y_index * p.columns;
  const ResultTile<T> result(place, static_cast<Real*>(task.result) + place.batch * p.rows * p.inner, task.result_line,
                             task.result_by_rows);

  bool marked = false;
  Real sum[T::kEach][T::kEach];
  multiply<T>(
      place, left, right, result,
      [&](Real h, int, int64_t) {
        marked = marked || h != h;
        return h == h ? h : Real(0);
      },
      [&](Real v, int, int64_t depth) { return finite_exp(v, column_tops[depth]); }, sum);
  const MarkedTerms<T> terms{task,
                             result,
                             x,
                             y,
                             static_cast<const Real*>(task.grad) + product,
                             static_cast<const Real*>(task.value) + product,
                             place.row,
                             place.column};
  result.for_each([&](int r, int c, int64_t) {
    const Real v = terms.x_at(place.row + result.row(r), place.column + result.column(c));
    sum[r][c] *= finite_exp(v, row_tops[result.row(r)]);
  });
  result.store([&](int r, int c) { return sum[r][c]; });

  if (!__syncthreads_or(marked)) return;
  for (int r = 0; r < T::kEach; ++r) {
    if (!result.exists(r, 0)) continue;
    const Real* h = left.data + result.row(r) * left.outer_stride;
    for (int64_t k = 0; k < p.columns; ++k) {
      const Real mark = h[k * left.depth_stride];
      if (mark != mark) terms.add(r, k);
    }
  }
}

MatrixOperand transposed(const MatrixOperand& m) { return {m.data, nullptr, m.column_stride, m.row_stride}; }

// The task whose grad_x is the gradient of y.
GradientTask transposed(const GradientTask& task, void* grad_y) {
  const MatrixProblem& p = task.problem;
  GradientTask t = task;
  t.problem = {p.batch, p.columns, p.inner, p.rows, transposed(p.y), transposed(p.x), p.is_double};
  t.batch.x = task.batch.y;
  t.batch.y = task.batch.x;
  t.row_tops = task.column_tops;
  t.column_tops = task.row_tops;
  t.product_row_stride = task.product_column_stride;
  t.product_column_stride = task.product_row_stride;
  t.result = grad_y;
  t.result_line = p.columns;
  t.result_by_rows = false;
  return t;
}

// ---- launches -----------------------------------------------------------------------------------

template <class Real>
struct Launches {
  static void sums(const SumsTask& task, const Stream& stream) {
    const MatrixProblem& p = task.problem;
    choose_tiles<Real, true>(p.batch, p.rows, p.columns, stream, [&]<class T>() {
      launch(sums_kernel<T>, tile_launch<T>(p.batch, p.rows, p.columns), stream, task);
    });
  }
  static void gradient(const GradientTask& task, const Stream& stream) {
    const MatrixProblem& p = task.problem;
    choose_tiles<Real, true>(p.batch, p.rows, p.inner, stream, [&]<class T>() {
      launch(gradient_kernel<T>, tile_launch<T>(p.batch, p.rows, p.inner), stream, task);
    });
  }
};

template <class Real>
void* column_tops(void* tops, const MatrixProblem& p, const MatrixBatch& batch) {
  return static_cast<Real*>(tops) + batch.x.distinct * p.rows;
}

template <class Real>
void forward(const LogMatmulExpDeviceTask& task, const Stream& stream) {
  const MatrixProblem& p = task.problem;
  launch_tops<Real>(p, task.batch, task.tops, stream);
  Launches<Real>::sums(
      {p, task.batch, task.tops, column_tops<Real>(task.tops, p, task.batch), task.out, nullptr, nullptr}, stream);
}

template <class Real>
void backward(const LogMatmulExpBackwardDeviceTask& task, const Stream& stream) {
  const MatrixProblem& p = task.problem;
  void* const right_tops = column_tops<Real>(task.tops, p, task.batch);
  launch_tops<Real>(p, task.batch, task.tops, stream);
  Launches<Real>::sums({p, task.batch, task.tops, right_tops, task.scaled, task.grad, task.out}, stream);
  const GradientTask gradient{p,        task.batch, task.tops, right_tops,  task.scaled, task.grad,
                              task.out, p.columns,  1,         task.grad_x, p.inner,     true};
  if (p.inner == 0) return;
  Launches<Real>::gradient(gradient, stream);
  Launches<Real>::gradient(transposed(gradient, task.grad_y), stream);
}

}  // namespace

void logmatmulexp_cuda(const LogMatmulExpDeviceTask& task, const gpu::Stream& stream) {
  task.problem.is_double ? forward<double>(task, stream) : forward<float>(task, stream);
}

void logmatmulexp_backward_cuda(const LogMatmulExpBackwardDeviceTask& task, const gpu::Stream& stream) {
  task.problem.is_double ? backward<double>(task, stream) : backward<float>(task, stream);
}

}  // namespace sumprod
