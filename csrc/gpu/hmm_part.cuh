// What one group of the resident recursion carries through time: a sequence, or a piece of one.
#pragma once

#include "gpu/hmm_length.cuh"
#include "gpu/hmm_pieces.h"

namespace sumprod::gpu {

// Sequences as a whole (pieces.count = 1, one piece of all steps), pieces from every state to fill
// pieces.transfers (`transfer`), or pieces from pieces.starts.
struct HmmParts {
  HmmRecursion recursion;
  HmmPieces pieces;
  bool transfer;

  SUMPROD_BOTH bool whole() const { return !transfer && pieces.starts.forward == nullptr; }
  SUMPROD_BOTH int64_t count() const {
    const int64_t each = recursion.problem.batch * pieces.count;
    return transfer ? each * recursion.problem.states : each * (int(recursion.forward) + int(recursion.backward));
  }
};

struct HmmPart {
  bool exists, backward;
  int64_t sequence, place;  // place: which piece
  int64_t begin;            // first step of the piece
  int length, state;        // steps; the only state before it, where that is a part of a transfer
  bool last;                // no step of the sequence follows

  SUMPROD_DEVICE HmmPart(const HmmParts& parts, int64_t index) {
    const HmmProblem& p = parts.recursion.problem;
    exists = index < parts.count();
    state = parts.transfer ? int(index % p.states) : 0;
    if (parts.transfer) index /= p.states;
    place = index % parts.pieces.count;
    index /= parts.pieces.count;
    backward = !parts.transfer && (!parts.recursion.forward || index >= p.batch);
    sequence = index % p.batch;
    begin = place * parts.pieces.steps;
    const int64_t rest = exists ? length_on_device(p, sequence) - begin : 0;
    last = rest <= parts.pieces.steps;
    length = rest <= 0 ? 0 : int(last ? rest : parts.pieces.steps);
    if (place == 0 && state > 0) length = 0;
  }

  // Forward pieces go on from a message before them; others start with one at their first step.
  SUMPROD_DEVICE bool goes_on() const { return !backward && place > 0; }
  // In the order of the pass.
  SUMPROD_DEVICE int64_t first_step() const { return backward ? begin + length - 1 : begin; }
  // Of the tables in HmmPieces.
  SUMPROD_DEVICE int64_t row(const HmmParts& parts) const { return sequence * parts.pieces.count + place; }
};

}  // namespace sumprod::gpu
