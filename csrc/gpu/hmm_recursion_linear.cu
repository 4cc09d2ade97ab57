#include "gpu/hmm_large.h"
#include "gpu/hmm_recursion_launch.cuh"

namespace sumprod::gpu {

namespace {

template <class A>
void run(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.states > kMostResidentStates) return run_large_recursion<A>(recursion, stream);
  run_recursion<A>(recursion, stream);
}

}  // namespace

void run_linear_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.is_double) return run<ScaledLinear<double>>(recursion, stream);
  run<ScaledLinear<float>>(recursion, stream);
}

}  // namespace sumprod::gpu
