// Few long paths, walked in parallel over time. A path is cut into pieces of equal length.
//   1. Every piece is walked from every state that may follow it. That is a map: state after the piece -> state of its
//      first step, one byte per state. What follows the last piece is known: nothing.
//   2. The maps are applied one after the other, from the end on: the state after every piece.
//   3. Every piece is walked once more, from there, and writes its part of the path.
// Given its uniform number a draw is a function of the next state, as the best state is. So the paths are those of a
// walk through whole sequences, to the last bit.
#pragma once

#include "gpu/hmm_walk.h"

namespace sumprod::gpu {

struct WalkPieces {
  int64_t steps, count;  // of a piece; pieces per path, 1 for no division
  uint8_t* maps;         // [sequence, draw, piece, state after it]
  uint8_t* after;        // [sequence, draw, piece]: the state after it; `states` for none
};

// How paths are divided, by a rule that depends on sizes and on the device alone.
WalkPieces divide_walk(const HmmWalk& walk, const Stream& stream);

// Phase 2.
void chain_walk_maps(const HmmWalk& walk, const WalkPieces& pieces, const Stream& stream);

}  // namespace sumprod::gpu
