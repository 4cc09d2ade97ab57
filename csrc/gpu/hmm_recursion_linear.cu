#include "gpu/hmm_recursion.cuh"

namespace sumprod::gpu {

void run_linear_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.is_double) return launch_resident_for<ScaledLinear<double>>(recursion, stream);
  launch_resident_for<ScaledLinear<float>>(recursion, stream);
}

}  // namespace sumprod::gpu
