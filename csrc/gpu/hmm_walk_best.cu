#include "gpu/hmm_walk_parts.cuh"

namespace sumprod::gpu {

void walk_best_path(const HmmWalk& walk, const Stream& stream) { walk_paths<MaxPlus<float>>(walk, stream); }

}  // namespace sumprod::gpu
