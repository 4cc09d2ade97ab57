// log sum exp over any dims of a tensor of any strides.
//
//   out[k] = log sum_j exp(x[k, j])          k: kept dims, j: reduced dims
//   gradient: g[k] exp(x[k, j] - out[k])
//
// One pass over memory: blocks are summed relative to their own maxima. A slice of -inf gives -inf
// and gradient 0; +inf gives +inf, and its entries share the gradient equally; NaN gives NaN.
#pragma once

#include "core/isa.h"
#include "core/slices.h"
#include "gpu/stream.h"

namespace sumprod {

struct LogSumExpTask {
  const SliceProblem* problem;
  int64_t begin, end;  // items of the plan; groups when combining
  void* workspace;
  SlicePartial* partials;  // [group, slice of the group, chunk], used when there are several chunks
  void* result;            // one per slice; float for half types
};
SUMPROD_DECLARE_KERNEL(SlicePlan, logsumexp_plan, (const SliceProblem&))
SUMPROD_DECLARE_KERNEL(void, logsumexp_items, (const LogSumExpTask&))
SUMPROD_DECLARE_KERNEL(void, logsumexp_combine, (const LogSumExpTask&))

struct LogSumExpBackwardTask {
  const SliceProblem* problem;  // float32 or float64
  int64_t begin, end;
  void* workspace;
  const void *grad, *result;  // one per slice
  void* output;               // gradient of the input
};
SUMPROD_DECLARE_KERNEL(void, logsumexp_backward_items, (const LogSumExpBackwardTask&))
// Rewrites slices [begin, end) whose result is +inf; the other kernel leaves NaN there.
SUMPROD_DECLARE_KERNEL(void, logsumexp_backward_share, (const LogSumExpBackwardTask&))
SUMPROD_DECLARE_KERNEL(bool, logsumexp_any_infinite, (const SliceProblem&, const void* result))

struct LogSumExpCuda {
  SliceProblem problem;
  void* result;   // as above; null: nothing is computed
  void* scratch;  // of as many bytes as are returned
};
int64_t logsumexp_cuda(const LogSumExpCuda& task, const gpu::Stream& stream);

struct LogSumExpGradientCuda {
  const void *grad, *result;
  void* output;
};
void logsumexp_backward_cuda(const SliceProblem& problem, const LogSumExpGradientCuda& task, const gpu::Stream& stream);

}  // namespace sumprod
