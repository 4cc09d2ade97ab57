// The HMM recursions of gpu/hmm_recursion.h for more states than one block can carry: on a cluster of blocks that
// keeps the matrix on chip (gpu/hmm_cluster.cuh), or else launched step by step (gpu/hmm_stepwise.cuh).
#pragma once

#include "gpu/hmm_recursion.h"

namespace sumprod::gpu {

// Whether a cluster can carry it; depends on the device and on sizes alone.
bool runs_on_cluster(const HmmProblem& problem, const Stream& stream);

// For the arithmetics of gpu/hmm_arithmetic.cuh.
template <class A>
void launch_on_cluster(const HmmRecursion& recursion, const Stream& stream);
template <class A>
void launch_stepwise(const HmmRecursion& recursion, const Stream& stream);

int64_t stepwise_scratch_bytes(const HmmProblem& problem);

template <class A>
void run_large_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (runs_on_cluster(recursion.problem, stream)) return launch_on_cluster<A>(recursion, stream);
  launch_stepwise<A>(recursion, stream);
}

}  // namespace sumprod::gpu
