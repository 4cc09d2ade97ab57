// Which sequence runs in which lane of a group, and when.
//
// A lane holds one sequence, or several one after the other (HmmSegment). The recursions count the
// steps of the *lanes*; where a segment starts or ends they treat its lane apart, and nothing
// passes from one segment to the next. Steps without a sequence (behind a lane's last segment, in
// a lane without any, in the few steps between two) read emissions of 0, so that they stay finite
// and cost no branch.
#pragma once

#include "core/hmm_layout.h"

namespace {

using sumprod::HmmGroup;
using sumprod::HmmProblem;
using sumprod::HmmSegment;

template <class Layout>
class Lanes {
 public:
  Lanes(Arena& arena, const HmmProblem& problem, const HmmGroup& group)
      : count(group.count), steps(group.steps), problem_(problem), segments_(group.segments) {
    marks_ = arena.take<uint8_t>(steps + 1);
    if (marks_ == nullptr) return;
    for (int64_t t = 0; t <= steps; ++t) marks_[t] = 0;
    int lane = 0;
    for (int64_t k = 0; k < count; ++k) {
      while (lane < segments_[k].lane) first_[++lane] = k;
      marks_[start(k)] |= kStart;
      marks_[end(k) - 1] |= kEnd;
    }
    while (lane < Layout::kLanes) first_[++lane] = count;
  }

  const int64_t count;  // segments
  const int64_t steps;  // of the longest lane

  int64_t sequence(int64_t k) const { return segments_[k].sequence; }
  int lane(int64_t k) const { return segments_[k].lane; }
  int64_t start(int64_t k) const { return segments_[k].start; }
  int64_t length(int64_t k) const { return sumprod::length_of(problem_, sequence(k)); }
  int64_t end(int64_t k) const { return start(k) + length(k); }

  // The segments of lane l: first(l) .. first(l + 1) - 1.
  int64_t first(int l) const { return first_[l]; }

  // The last segment of lane l that starts no later than step t, from the one at `hint` on; the
  // lane must not be empty.
  int64_t find(int l, int64_t t, int64_t hint) const {
    while (hint + 1 < first(l + 1) && start(hint + 1) <= t) ++hint;
    while (hint > first(l) && start(hint) > t) --hint;
    return hint;
  }

  // Whether some segment has its first, or its last, step at t.
  bool starts_at(int64_t t) const { return (marks_[t] & kStart) != 0; }
  bool ends_at(int64_t t) const { return (marks_[t] & kEnd) != 0; }

 private:
  static constexpr uint8_t kStart = 1, kEnd = 2;

  const HmmProblem& problem_;
  const HmmSegment* segments_;
  int64_t first_[Layout::kLanes + 1] = {};
  uint8_t* marks_;
};

// The lanes at one step, as masks.
template <class Layout>
class Cursor {
 public:
  using Real = typename Layout::Real;
  using Mask = Int<Real>;
  static constexpr int W = Layout::W;

  explicit Cursor(const Lanes<Layout>& lanes) : lanes_(lanes) {
    for (int l = 0; l < Layout::kLanes; ++l) segment_[l] = lanes.first(l);
  }

  // Steps one further in either direction cost little.
  SUMPROD_INLINE void move(int64_t t) {
    const bool same = t == now_ + 1 ? !lanes_.starts_at(t) : (t == now_ - 1 && !lanes_.ends_at(t));
    now_ = t;
    if (!same) find_segments();
  }

  // The segment of lane l: the one at this step, or a neighbour when the lane is not active.
  int64_t segment(int l) const { return segment_[l]; }

  // Lanes with a sequence at this step; of these, the ones whose sequence has a next step; the
  // ones at their first step; the ones at their last.
  Mask active() const { return (start_ <= now()) & (end_ > now()); }
  Mask continues() const { return (start_ <= now()) & (end_ > now() + 1); }
  Mask starts() const { return start_ == now(); }
  Mask ends() const { return (start_ <= now()) & (end_ == now() + 1); }

 private:
  using Bits = typename Simd<Real>::Bits;

  Bits now() const { return Bits(now_); }

  SUMPROD_NOINLINE void find_segments() {
    Bits start[W], end[W];
    for (int l = 0; l < Layout::kLanes; ++l) {
      const bool empty = lanes_.first(l) == lanes_.first(l + 1);
      if (!empty) segment_[l] = lanes_.find(l, now_, segment_[l]);
      start[l] = empty ? -1 : Bits(lanes_.start(segment_[l]));
      end[l] = empty ? -1 : Bits(lanes_.end(segment_[l]));
    }
    for (int l = Layout::kLanes; l < W; ++l) {
      start[l] = start[0];
      end[l] = end[0];
    }
    __builtin_memcpy(&start_, start, sizeof start_);
    __builtin_memcpy(&end_, end, sizeof end_);
  }

  const Lanes<Layout>& lanes_;
  int64_t now_ = -2;
  int64_t segment_[Layout::kLanes];
  Mask start_ = {}, end_ = {};
};

}  // namespace
