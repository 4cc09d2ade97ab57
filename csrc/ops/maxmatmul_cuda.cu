#include "ops/maxmatmul.h"

#include "gpu/matrix_tiles.cuh"

namespace sumprod {

namespace {

using namespace gpu;

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) maxima_kernel(const MaxMatmulDeviceTask task) {
  using Real = typename T::Real;
  const MatrixProblem& p = task.problem;
  const TilePlace<T> place(p.batch, p.rows, p.columns);
  const BatchPlace at(task.batch, place.batch);
  const Strip<Real> left{static_cast<const Real*>(p.x.data) + at.x + place.row * p.x.row_stride, p.x.row_stride,
                         p.x.column_stride, place.rows, p.inner};
  const Strip<Real> right{static_cast<const Real*>(p.y.data) + at.y + place.column * p.y.column_stride,
                          p.y.column_stride, p.y.row_stride, place.columns, p.inner};
  const int64_t matrix = place.batch * p.rows * p.columns;
  const ResultTile<T> values(place, static_cast<Real*>(task.values) + matrix, p.columns, true);
  const ResultTile<T, int64_t> indices(place, task.indices + matrix, p.columns, true);

  Real best[T::kEach][T::kEach];
  int where[T::kEach][T::kEach];
#pragma unroll
  for (int r = 0; r < T::kEach; ++r) {
#pragma unroll
    for (int c = 0; c < T::kEach; ++c) {
      best[r][c] = -infinity<Real>();
      where[r][c] = 0;
    }
  }
  const auto as_is = [](Real v, int, int64_t) { return v; };
  for_depth<T>(place, left, right, -infinity<Real>(), as_is, as_is, [&](const Real* a, const Real* b, int64_t first) {
    for_products<T>(values, a, b, [&](int r, int c, Real x, Real y, int d) {
      const Real term = x + y, old = best[r][c];
      const bool better = term > old || (term != term && old == old);  // the first NaN stays
      best[r][c] = better ? term : old;
      where[r][c] = better ? int(first) + d : where[r][c];
    });
  });
  values.store([&](int r, int c) { return best[r][c]; });
  indices.store([&](int r, int c) { return int64_t(where[r][c]); });
}

template <class Real>
void run(const MaxMatmulDeviceTask& task, const Stream& stream) {
  const MatrixProblem& p = task.problem;
  choose_tiles<Real, false>(p.batch, p.rows, p.columns, stream, [&]<class T>() {
    launch(maxima_kernel<T>, tile_launch<T>(p.batch, p.rows, p.columns), stream, task);
  });
}

}  // namespace

void maxmatmul_cuda(const MaxMatmulDeviceTask& task, const gpu::Stream& stream) {
  task.problem.is_double ? run<double>(task, stream) : run<float>(task, stream);
}

}  // namespace sumprod
