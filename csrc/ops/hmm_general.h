// The CUDA path of the HMM operators that serves every input: any transition, any strides, any number of states.
//
// It works in log space with absolute messages in double (gpu/hmm_log_space.cuh), so that nothing under- or overflows
// and -inf, NaN and potentials of any size mean what they mean on the CPU. Faster kernels for common cases hand over
// to it the sequences that they cannot be trusted with.
//
// Every launcher writes all results of the sequences that it is responsible for, padding and sequences of length 0
// included, and touches nothing else. With `scratch` null it launches nothing; it always returns the bytes of scratch
// memory that it needs, which depend on sizes alone.
#pragma once

#include "gpu/stream.h"
#include "ops/hmm_filter.h"
#include "ops/hmm_log_normalizer.h"
#include "ops/hmm_marginals.h"
#include "ops/hmm_pairwise.h"
#include "ops/hmm_sample.h"
#include "ops/hmm_viterbi.h"

namespace sumprod {

struct HmmGeneral {
  HmmProblem problem;   // all pointers are to device memory
  const uint8_t* only;  // [batch]: sequences with 0 are not ours; null when all are
  void* scratch;        // 256-byte aligned
};

int64_t hmm_general_log_normalizer_cuda(const HmmGeneral& task, const HmmLogNormalizerOutputs& out,
                                        const gpu::Stream& stream);
int64_t hmm_general_filter_cuda(const HmmGeneral& task, const HmmFilterOutputs& out, const gpu::Stream& stream);
int64_t hmm_general_marginals_cuda(const HmmGeneral& task, const HmmMarginalsOutputs& out, const gpu::Stream& stream);
int64_t hmm_general_pairwise_cuda(const HmmGeneral& task, const HmmPairwiseOutputs& out, const gpu::Stream& stream);
int64_t hmm_general_viterbi_cuda(const HmmGeneral& task, const HmmViterbiOutputs& out, const gpu::Stream& stream);
int64_t hmm_general_sample_cuda(const HmmGeneral& task, const HmmSampleOutputs& out, const gpu::Stream& stream);

// `out.transition` is what TransitionGradient says: for `shared`, hmm_general_gradient_units() partial sums, all of
// which are written; for `shared_steps` one. They may be added up by hmm_add_partial_sums_cuda().
int64_t hmm_general_gradient_cuda(const HmmGeneral& task, const HmmLogNormalizerGradients& out,
                                  const gpu::Stream& stream);
int64_t hmm_general_gradient_units(const HmmProblem& problem);

// out[k] = sum over r of partial[r][k] in the order of r; `out` is float or double.
void hmm_add_partial_sums_cuda(const double* partial, int64_t rows, int64_t size, void* out, bool is_double,
                               const gpu::Stream& stream);

// out[s] = sum over b of rows[b][s], in an order that depends on sizes alone; both float or double.
void hmm_add_batch_cuda(const void* rows, int64_t batch, int64_t states, void* out, bool is_double,
                        const gpu::Stream& stream);

}  // namespace sumprod
