#include "gpu/hmm_cluster_launch.cuh"

namespace sumprod::gpu {

template void launch_on_cluster<MaxPlus<double>>(const HmmRecursion& recursion, const Stream& stream);

}  // namespace sumprod::gpu
