// Matrix product in the max-plus (tropical) semiring, with the index that reaches the maximum.
//
//   values[b, i, k]  = max_j x[b, i, j] + y[b, j, k]
//   indices[b, i, k] = the lowest such j
//
// NaN wins over everything: the value is NaN and the index that of the first NaN. With no j at all,
// -inf and 0. All -inf is a tie of everything: index 0.
#pragma once

#include "core/isa.h"
#include "core/matrix_problem.h"
#include "gpu/stream.h"

namespace sumprod {

// With `workspace` null nothing is computed and the kernel returns the bytes that it needs.
struct MaxMatmulTask {
  const MatrixProblem* problem;
  int64_t begin, end;  // tiles of the grid of `values`
  void* workspace;
  void* values;      // [batch, rows, columns]
  int64_t* indices;  // the same shape
};
SUMPROD_DECLARE_KERNEL(int64_t, maxmatmul_tiles, (const MaxMatmulTask&))

struct MaxMatmulDeviceTask {
  MatrixProblem problem;
  MatrixBatch batch;
  void* values;
  int64_t* indices;
};
void maxmatmul_cuda(const MaxMatmulDeviceTask& task, const gpu::Stream& stream);

}  // namespace sumprod
