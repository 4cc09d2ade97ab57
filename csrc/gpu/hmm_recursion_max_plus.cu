#include "gpu/hmm_recursion_launch.cuh"

namespace sumprod::gpu {

void run_max_plus_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.is_double) return run_recursion<MaxPlus<double>>(recursion, stream);
  run_recursion<MaxPlus<float>>(recursion, stream);
}

}  // namespace sumprod::gpu
