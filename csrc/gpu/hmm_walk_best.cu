#include "gpu/hmm_walk_whole.cuh"

namespace sumprod::gpu {

void walk_best_path(const HmmWalk& walk, const Stream& stream) { walk_whole_sequences<MaxPlus<float>>(walk, stream); }

}  // namespace sumprod::gpu
