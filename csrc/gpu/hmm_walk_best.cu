#include "gpu/hmm_walk_parts.cuh"

namespace sumprod::gpu {

void walk_best_path(const HmmWalk& walk, const Stream& stream) {
  if (walk.problem.is_double) return walk_paths<MaxPlus<double>>(walk, stream);
  walk_paths<MaxPlus<float>>(walk, stream);
}

}  // namespace sumprod::gpu
