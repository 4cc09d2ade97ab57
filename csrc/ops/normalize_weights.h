// Normalising importance weights given by their logs, over one dim of n weights.
//
//   log_weights[k, j] = w[k, j] - log sum_j' exp(w[k, j'])
//   log_evidence[k]   = log sum_j exp(w[k, j]) - log n        (log of the mean raw weight)
//   ess[k]            = 1 / sum_j exp(2 log_weights[k, j])    (Kong 1992)
//
// One pass reads the weights, a second writes them. No weight at all (all -inf, or n = 0): -inf,
// -inf, 0. +inf entries share the weight equally: log_evidence +inf, ess their number.
#pragma once

#include "core/isa.h"
#include "core/slices.h"
#include "gpu/stream.h"

namespace sumprod {

struct NormalizeWeightsTask {
  const SliceProblem* problem;  // float32 or float64
  int64_t begin, end;           // items of the plan; groups when combining
  void* workspace;
  SlicePartial* partials;  // [group, slice of the group, chunk], used when there are several chunks
  double count;            // n
  void *top, *log_sum;     // one per slice, from the first pass to the second
  void *log_weights, *log_evidence, *ess;
};
SUMPROD_DECLARE_KERNEL(SlicePlan, normalize_weights_plan, (const SliceProblem&))
SUMPROD_DECLARE_KERNEL(void, normalize_weights_items, (const NormalizeWeightsTask&))
SUMPROD_DECLARE_KERNEL(void, normalize_weights_combine, (const NormalizeWeightsTask&))
SUMPROD_DECLARE_KERNEL(void, normalize_weights_write, (const NormalizeWeightsTask&))

struct NormalizeWeightsCuda {
  void *log_weights, *log_evidence, *ess;
  void *top, *log_sum;     // filled in by the launcher, from its scratch memory, like the next
  SlicePartial* partials;  // [slice, chunk], used when there are several chunks
};
// With `scratch` null nothing is computed; returns the bytes of scratch memory that are needed.
int64_t normalize_weights_cuda(const SliceProblem& problem, const NormalizeWeightsCuda& task, void* scratch,
                               const gpu::Stream& stream);

}  // namespace sumprod
