// From kept forward messages back to state paths: the most probable one, or samples.
//
//   z_last from a_last,      z_t from a_t[i] (x) A[i][z_t+1]
// with the best i (Viterbi) or one drawn by its weight. This is a chain as long as the sequence, one choice among S
// states after the other, so its time is what one choice takes (gpu/hmm_walk.cuh); few long sequences are cut into
// pieces (gpu/hmm_walk_pieces.h).
#pragma once

#include "core/hmm_problem.h"
#include "gpu/stream.h"

namespace sumprod::gpu {

struct HmmWalk {
  HmmProblem problem;    // pointers to device memory; homogeneous transitions
  const void* messages;  // [batch, steps, walk_message_row()]: forward, after the emission, rows on scales of their own
  void* columns;         // scratch, walk_columns_bytes(), 16-byte aligned: the matrices as walks read them
  const void* uniforms;  // [draw, sequence, step]; null for the best path
  int64_t draws;         // paths per sequence: 1 for the best path
  int64_t draw_stride;   // between draws, in uniforms and in paths; sequences are `steps` apart
  int64_t* paths;        // [draw, sequence, step]; -1 past lengths
  int64_t* dead;         // [batch]: -1, because no sequence that is walked is impossible
  const uint8_t* redo;   // [batch]: sequences marked here are left alone
  void* scratch;         // walk_scratch_bytes(), 16-byte aligned; null where that is 0
};

int64_t walk_message_row(const HmmProblem& problem);  // for HmmRecursion::message_row
// One that all sequences share, or one for each.
inline int64_t walk_matrices(const HmmProblem& problem) { return problem.transition_batch == 0 ? 1 : problem.batch; }
int64_t walk_columns_bytes(const HmmProblem& problem);
int64_t walk_scratch_bytes(const HmmWalk& walk, const Stream& stream);  // by sizes: pointers may be null

// The best path from max-plus messages, and samples from linear ones.
void walk_best_path(const HmmWalk& walk, const Stream& stream);
void walk_samples(const HmmWalk& walk, const Stream& stream);

}  // namespace sumprod::gpu
