#include "gpu/hmm_recursion.cuh"

namespace sumprod::gpu {

void run_max_plus_recursion(const HmmRecursion& recursion, const Stream& stream) {
  launch_resident_for<MaxPlus<float>>(recursion, stream);
}

}  // namespace sumprod::gpu
