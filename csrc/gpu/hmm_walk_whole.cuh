// Walks through whole sequences (gpu/hmm_walk.h).
#pragma once

#include "gpu/hmm_walk.cuh"

namespace sumprod::gpu {

// Draws of a sequence are neighbours, so that those of one warp read the same messages.
template <class Real>
class WholeSequences {
 public:
  explicit WholeSequences(const HmmWalk& walk) : count(walk.problem.batch * walk.draws), walk_(walk) {}

  SUMPROD_DEVICE bool stretch(int64_t unit, Stretch<Real>* s) const {
    const HmmProblem& p = walk_.problem;
    const int64_t sequence = unit / walk_.draws, at = offset(unit);
    s->messages = static_cast<const Real*>(walk_.messages) + sequence * p.steps * walk_message_entries<Real>(p.states);
    s->uniforms = walk_.uniforms == nullptr ? nullptr : static_cast<const Real*>(walk_.uniforms) + at;
    s->path = walk_.paths + at;
    s->first = 0;
    s->count = int(length(sequence));
    s->next = int(p.states);
    return s->count > 0 && walk_.redo[sequence] == 0;
  }

  SUMPROD_DEVICE void finish(int64_t unit, int, int lane, int lanes) const {
    const int64_t sequence = unit / walk_.draws;
    if (walk_.redo[sequence] != 0) return;
    int64_t* path = walk_.paths + offset(unit);
    for (int64_t t = length(sequence) + lane; t < walk_.problem.steps; t += lanes) path[t] = -1;
    if (unit % walk_.draws == 0 && lane == 0) walk_.dead[sequence] = -1;
  }

  int64_t count;

 private:
  SUMPROD_DEVICE int64_t offset(int64_t unit) const {
    return unit % walk_.draws * walk_.draw_stride + unit / walk_.draws * walk_.problem.steps;
  }
  SUMPROD_DEVICE int64_t length(int64_t sequence) const {
    const int64_t steps = walk_.problem.steps,
                  n = walk_.problem.lengths == nullptr ? steps : walk_.problem.lengths[sequence];
    return n < 0 ? 0 : (n > steps ? steps : n);
  }

  HmmWalk walk_;
};

template <class A>
void walk_whole_sequences(const HmmWalk& walk, const Stream& stream) {
  make_walk_columns<A>(walk.problem, walk.columns, stream);
  walk_stretches<A>(walk, WholeSequences<typename A::Real>(walk), stream);
}

}  // namespace sumprod::gpu
