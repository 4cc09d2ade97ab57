#include "gpu/hmm_large.h"
#include "gpu/hmm_recursion.cuh"

namespace sumprod::gpu {

namespace {

template <class A>
void run_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.states > kMostResidentStates) return run_large_recursion<A>(recursion, stream);
  launch_resident_for<A>(recursion, stream);
}

}  // namespace

void run_linear_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.is_double) return run_recursion<ScaledLinear<double>>(recursion, stream);
  run_recursion<ScaledLinear<float>>(recursion, stream);
}

}  // namespace sumprod::gpu
