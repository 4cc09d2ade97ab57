#include "ops/hmm_paths_gpu.h"

#include <algorithm>

#include "gpu/hmm_walk.h"
#include "ops/hmm_recursion_gpu.h"

namespace sumprod {

namespace {

// Memory for messages and matrices. Batches that need more are worked on in parts, but a sequence is never divided.
constexpr int64_t kScratchBytes = int64_t(4) << 30;

int64_t number_bytes(const HmmProblem& p) { return p.is_double ? 8 : 4; }

const void* advanced(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
void* advanced(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

// `count` sequences, from `first` on.
HmmProblem part_of(const HmmProblem& p, int64_t first, int64_t count) {
  const int64_t size = number_bytes(p);
  HmmProblem part = p;
  part.batch = count;
  part.initial = advanced(p.initial, first * p.initial_batch * size);
  part.transition = advanced(p.transition, first * p.transition_batch * size);
  part.emission = advanced(p.emission, first * p.emission_batch * size);
  part.lengths = p.lengths == nullptr ? nullptr : p.lengths + first;
  return part;
}

// The outputs of Viterbi or of sampling.
struct PathOutputs {
  void* score;           // null for samples
  const void* uniforms;  // null for the best path
  int64_t draws;
  int64_t *paths, *dead;
};

void run_part(const HmmProblem& problem, int64_t first, int64_t count, const PathOutputs& out, void* messages,
              void* columns, uint8_t* redo, const GpuCall& call) {
  const int64_t size = number_bytes(problem), rows = first * problem.steps;
  const bool best = out.uniforms == nullptr;
  gpu::HmmRecursion recursion = {};
  recursion.problem = part_of(problem, first, count);
  recursion.forward = true;
  recursion.forward_messages = messages;
  recursion.total = best ? advanced(out.score, first * size) : nullptr;
  recursion.redo = redo + first;
  recursion.message_row = gpu::walk_message_row(problem);

  gpu::HmmWalk walk = {};
  walk.problem = recursion.problem;
  walk.messages = messages;
  walk.columns = columns;
  walk.uniforms = best ? nullptr : advanced(out.uniforms, rows * size);
  walk.draws = out.draws;
  walk.draw_stride = problem.batch * problem.steps;
  walk.paths = out.paths + rows;
  walk.dead = out.dead + first;
  walk.redo = redo + first;
  const int64_t scratch_bytes = gpu::walk_scratch_bytes(walk, call.stream());
  Tensor scratch = call.scratch(scratch_bytes);
  walk.scratch = scratch_bytes == 0 ? nullptr : scratch.mutable_data_ptr();

  run_recursion(best ? gpu::run_max_plus_recursion : gpu::run_linear_recursion, recursion, call);
  (best ? gpu::walk_best_path : gpu::walk_samples)(walk, call.stream());
}

Tensor run(const GpuCall& call, const HmmProblem& problem, const PathOutputs& out) {
  const int64_t messages_each = problem.steps * gpu::walk_message_row(problem) * number_bytes(problem);
  const int64_t columns_each = problem.transition_batch == 0 ? 0 : gpu::walk_columns_bytes(part_of(problem, 0, 1));
  const int64_t part = std::clamp<int64_t>(kScratchBytes / (messages_each + columns_each), 1, problem.batch);
  Tensor messages = call.scratch(part * messages_each);
  Tensor columns = call.scratch(gpu::walk_columns_bytes(part_of(problem, 0, part)));
  Tensor redo = call.scratch(problem.batch);
  torch::stable::fill_(redo, 0.0);
  for (int64_t first = 0; first < problem.batch; first += part) {
    run_part(problem, first, std::min(part, problem.batch - first), out, messages.mutable_data_ptr(),
             columns.mutable_data_ptr(), redo.mutable_data_ptr<uint8_t>(), call);
  }
  return redo;
}

}  // namespace

std::optional<Tensor> fast_viterbi(const GpuCall& call, const HmmProblem& problem, const HmmViterbiOutputs& outputs) {
  if (!gpu::has_recursion(problem)) return std::nullopt;
  return run(call, problem, {outputs.score, nullptr, 1, outputs.path, outputs.dead});
}

std::optional<Tensor> fast_sample(const GpuCall& call, const HmmProblem& problem, const HmmSampleOutputs& outputs) {
  if (!gpu::has_recursion(problem) || outputs.draws == 0) return std::nullopt;
  return run(call, problem, {nullptr, outputs.uniforms, outputs.draws, outputs.paths, outputs.dead});
}

}  // namespace sumprod
