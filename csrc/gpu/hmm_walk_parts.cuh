// The parts of paths that walks go through (gpu/hmm_walk.h): whole sequences, or pieces of them.
#pragma once

#include "gpu/hmm_length.cuh"
#include "gpu/hmm_walk.cuh"
#include "gpu/hmm_walk_pieces.h"

namespace sumprod::gpu {

// Whole paths and pieces from known states, which are written; or pieces from every state, for pieces.maps (`maps`).
// Neighbours are the states that one piece is walked from, then the draws of one sequence: those of one warp read the
// same messages.
template <class Real>
class WalkParts {
 public:
  WalkParts(const HmmWalk& walk, const WalkPieces& pieces, bool maps)
      : count(walk.problem.batch * walk.draws * pieces.count * (maps ? walk.problem.states : 1)),
        walk_(walk),
        pieces_(pieces),
        maps_(maps) {}

  SUMPROD_DEVICE bool stretch(int64_t unit, Stretch<Real>* s) const {
    const HmmProblem& p = walk_.problem;
    const Place at = place(unit);
    const int64_t matrix = p.transition_batch == 0 ? 0 : at.sequence * walk_matrix<Real>(p.states);
    s->columns = static_cast<const Real*>(walk_.columns) + matrix;
    s->messages =
        static_cast<const Real*>(walk_.messages) + at.sequence * p.steps * walk_message_entries<Real>(p.states);
    s->uniforms = walk_.uniforms == nullptr ? nullptr : static_cast<const Real*>(walk_.uniforms) + at.offset;
    s->path = maps_ ? nullptr : walk_.paths + at.offset;
    s->first = int(at.begin);
    s->count = int(at.end - at.begin);
    s->next = at.next;
    return s->count > 0 && at.next >= 0 && walk_.redo[at.sequence] == 0;
  }

  SUMPROD_DEVICE void finish(int64_t unit, int state, int lane, int lanes) const {
    if (maps_) {
      if (state >= 0 && lane == 0) pieces_.maps[unit] = uint8_t(state);
      return;
    }
    const Place at = place(unit);
    if (walk_.redo[at.sequence] != 0) return;
    int64_t* path = walk_.paths + at.offset;
    for (int64_t t = at.end + lane; t < at.padded_end; t += lanes) path[t] = -1;
    if (at.first_of_sequence && lane == 0) walk_.dead[at.sequence] = -1;
  }

  int64_t count;

 private:
  struct Place {
    int64_t sequence, offset;        // of the path's step 0, in uniforms and paths
    int64_t begin, end, padded_end;  // steps; those from `end` on are past the sequence
    int next;                        // the state after them, `states` for none; -1: this unit is not needed
    bool first_of_sequence;
  };

  SUMPROD_DEVICE Place place(int64_t unit) const {
    const HmmProblem& p = walk_.problem;
    const int64_t piece_of_all = maps_ ? unit / p.states : unit, path = piece_of_all / pieces_.count;
    const int64_t piece = piece_of_all - path * pieces_.count, draw = path % walk_.draws;
    Place at;
    at.sequence = path / walk_.draws;
    at.offset = draw * walk_.draw_stride + at.sequence * p.steps;
    at.begin = piece * pieces_.steps;
    at.padded_end = smaller(at.begin + pieces_.steps, p.steps);
    const int64_t length = length_on_device(p, at.sequence);
    at.end = smaller(at.padded_end, length < at.begin ? at.begin : length);
    at.first_of_sequence = piece == 0 && draw == 0;
    const bool last = at.padded_end >= length;
    if (maps_) {
      const int state = int(unit % p.states);
      at.next = !last ? state : (state == 0 ? int(p.states) : -1);
    } else {
      at.next = last ? int(p.states) : int(pieces_.after[piece_of_all]);
    }
    return at;
  }

  SUMPROD_DEVICE static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  HmmWalk walk_;
  WalkPieces pieces_;
  bool maps_;
};

template <class A>
void walk_paths(const HmmWalk& walk, const Stream& stream) {
  using Parts = WalkParts<typename A::Real>;
  make_walk_columns<A>(walk.problem, walk.columns, stream);
  const WalkPieces pieces = divide_walk(walk, stream);
  if (pieces.count > 1) {
    walk_stretches<A>(walk, Parts(walk, pieces, true), stream);
    chain_walk_maps(walk, pieces, stream);
  }
  walk_stretches<A>(walk, Parts(walk, pieces, false), stream);
}

}  // namespace sumprod::gpu
