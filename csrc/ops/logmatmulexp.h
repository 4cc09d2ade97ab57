// Matrix product in the log semiring.
//
//   out[b, i, k] = log sum_j exp(x[b, i, j] + y[b, j, k])
//
// Rows of x and columns of y are shifted by their maxima and exponentiated once each; the rest is a
// float product. A term that underflows is below 2^-126 of its row's and its column's maximum, so
// sums of at least 2^-80 have lost nothing; smaller ones (-inf, infinities and NaN among them) are
// redone term by term in log space. -inf + inf is NaN, as for torch.
//
// Gradient, with s[i,k] the shifted sums, p and q the exponentials, h = grad / s:
//   grad_x = p * (h q^T)      grad_y = q * (p^T h)
// where elements that were redone enter term by term instead, and -inf has no gradient.
#pragma once

#include "core/isa.h"
#include "core/matrix_problem.h"
#include "gpu/stream.h"

namespace sumprod {

// With `workspace` null nothing is computed and the kernel returns the bytes that it needs.
struct LogMatmulExpTask {
  const MatrixProblem* problem;
  int64_t begin, end;  // tiles of the grid of `out`
  void* workspace;
  void* out;  // [batch, rows, columns]
};
SUMPROD_DECLARE_KERNEL(int64_t, logmatmulexp_tiles, (const LogMatmulExpTask&))

struct LogMatmulExpBackwardTask {
  const MatrixProblem* problem;
  int64_t begin, end;
  void* workspace;
  const void *grad, *out;      // [batch, rows, columns]
  void* scaled;                // h, the same shape; NaN marks elements that enter term by term
  void *row_top, *column_top;  // maxima [batch, rows] and [batch, columns], padded by a register
  unsigned char* exact;        // per tile of `out`: some element is marked
  void *grad_x, *grad_y;       // [batch, rows, inner], [batch, inner, columns]
};
// To be run one after the other; the tiles are those of `out`, `grad_x` and `grad_y`.
SUMPROD_DECLARE_KERNEL(int64_t, logmatmulexp_scale_tiles, (const LogMatmulExpBackwardTask&))
SUMPROD_DECLARE_KERNEL(int64_t, logmatmulexp_grad_x_tiles, (const LogMatmulExpBackwardTask&))
SUMPROD_DECLARE_KERNEL(int64_t, logmatmulexp_grad_y_tiles, (const LogMatmulExpBackwardTask&))

// On the GPU. Scratch: the maxima of all distinct rows of x and columns of y, one after the other.
struct LogMatmulExpDeviceTask {
  MatrixProblem problem;
  MatrixBatch batch;
  void* tops;  // [batch.x.distinct, rows], [batch.y.distinct, columns]
  void* out;
};
void logmatmulexp_cuda(const LogMatmulExpDeviceTask& task, const gpu::Stream& stream);

struct LogMatmulExpBackwardDeviceTask {
  MatrixProblem problem;
  MatrixBatch batch;
  void* tops;
  const void *grad, *out;  // [batch, rows, columns]
  void* scaled;            // h, the same shape; NaN marks elements that enter term by term
  void *grad_x, *grad_y;   // [batch, rows, inner], [batch, inner, columns]
};
void logmatmulexp_backward_cuda(const LogMatmulExpBackwardDeviceTask& task, const gpu::Stream& stream);

}  // namespace sumprod
