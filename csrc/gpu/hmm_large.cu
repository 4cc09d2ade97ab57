#include "gpu/hmm_large.h"

#include "gpu/hmm_cluster.h"
#include "gpu/hmm_pieces.h"
#include "gpu/hmm_stepwise.cuh"

namespace sumprod::gpu {

template void launch_stepwise<ScaledLinear<float>>(const HmmRecursion& recursion, const Stream& stream);
template void launch_stepwise<ScaledLinear<double>>(const HmmRecursion& recursion, const Stream& stream);
template void launch_stepwise<MaxPlus<float>>(const HmmRecursion& recursion, const Stream& stream);
template void launch_stepwise<MaxPlus<double>>(const HmmRecursion& recursion, const Stream& stream);

bool runs_on_cluster(const HmmProblem& problem, const Stream& stream) {
  const DeviceProperties& device = properties_of(stream.device);
  const int64_t most = problem.is_double ? kMostClusterStatesDouble : kMostClusterStatesFloat;
  return problem.states <= most && device.compute_capability >= 90 && device.shared_bytes >= kClusterSharedBytes;
}

int64_t recursion_scratch_bytes(const HmmProblem& problem, const Stream& stream) {
  if (problem.states <= kMostResidentStates) return divided_scratch_bytes(problem, stream);
  return runs_on_cluster(problem, stream) ? 0 : stepwise_scratch_bytes(problem);
}

template <class Real>
static int64_t stepwise_bytes(const HmmProblem& problem) {
  const int64_t linear = StepwiseMemory<ScaledLinear<Real>>(problem, nullptr).bytes;
  const int64_t max_plus = StepwiseMemory<MaxPlus<Real>>(problem, nullptr).bytes;
  return linear > max_plus ? linear : max_plus;
}

int64_t stepwise_scratch_bytes(const HmmProblem& problem) {
  return problem.is_double ? stepwise_bytes<double>(problem) : stepwise_bytes<float>(problem);
}

}  // namespace sumprod::gpu
