// The resident HMM recursions (gpu/hmm_recursion.h) with the scratch memory that they ask for.
#pragma once

#include "gpu/hmm_recursion.h"
#include "ops/gpu_call.h"

namespace sumprod {

inline void run_recursion(void (*run)(const gpu::HmmRecursion&, const gpu::Stream&), gpu::HmmRecursion recursion,
                          const GpuCall& call) {
  const int64_t bytes = gpu::recursion_scratch_bytes(recursion.problem, call.stream());
  Tensor scratch = call.scratch(bytes);
  if (recursion.message_row == 0) recursion.message_row = recursion.problem.states;
  recursion.scratch = bytes == 0 ? nullptr : scratch.mutable_data_ptr();
  run(recursion, call.stream());
}

}  // namespace sumprod
