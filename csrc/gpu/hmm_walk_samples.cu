#include "gpu/hmm_walk_parts.cuh"

namespace sumprod::gpu {

int64_t walk_message_row(const HmmProblem& problem) {
  return problem.is_double ? walk_message_entries<double>(problem.states) : walk_message_entries<float>(problem.states);
}

int64_t walk_columns_bytes(const HmmProblem& problem) {
  const int64_t each = problem.is_double ? walk_matrix<double>(problem.states) * int64_t(sizeof(double))
                                         : walk_matrix<float>(problem.states) * int64_t(sizeof(float));
  return walk_matrices(problem) * each;
}

void walk_samples(const HmmWalk& walk, const Stream& stream) {
  if (walk.problem.is_double) return walk_paths<ScaledLinear<double>>(walk, stream);
  walk_paths<ScaledLinear<float>>(walk, stream);
}

}  // namespace sumprod::gpu
