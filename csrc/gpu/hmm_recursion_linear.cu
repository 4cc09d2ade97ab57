#include "gpu/hmm_recursion_launch.cuh"

namespace sumprod::gpu {

void run_linear_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.is_double) return run_recursion<ScaledLinear<double>>(recursion, stream);
  run_recursion<ScaledLinear<float>>(recursion, stream);
}

}  // namespace sumprod::gpu
