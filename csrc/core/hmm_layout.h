// How sequences and states are laid out over the lanes of a vector register.
//
// A *message* holds one number per state (and per sequence). Both layouts store it as `vectors`
// consecutive registers; the recursions are written once over that view, and a layout answers
// only: how is entry i of a message broadcast, which weights meet it, and how are states reduced.
//
//   LaneIsSequence: register v = state v of W sequences; a weight is one scalar for all of them.
//   LaneIsState:    register v = states v*W .. v*W+W-1 of one sequence; weights are a register.
//
// Both add in the same order (state 0 first), so a sequence gets the same bits in either.
#pragma once

#include "core/hmm_problem.h"
#include "core/simd.h"

namespace {

using sumprod::HmmGroup;
using sumprod::HmmProblem;

// Accumulators that stay in registers: half of the 32 (AVX-512) or of the 16 (others).
constexpr int kBlock = SUMPROD_VECTOR_BYTES == 64 ? 16 : 8;
constexpr int64_t kTileBytes = 16 * 1024;
constexpr int64_t kPrefetch = 64;  // reals ahead, in each of W streams

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Bump allocator over the caller's workspace; with a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* p = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up(count * int64_t(sizeof(T)), 64);
    return reinterpret_cast<T*>(p);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

template <class Real_>
struct LaneIsSequence {
  using Real = Real_;
  static constexpr int W = Simd<Real>::kWidth;
  static constexpr int kLanes = W;    // sequences per group
  static constexpr int kWeight = 1;   // reals per weight
  static constexpr int kMessage = W;  // reals per message entry
  static constexpr int kMaxPanel = kBlock;

  static int64_t vectors(int64_t states) { return states; }
  static SUMPROD_INLINE Vec<Real> entry(const Real* message, int64_t i) { return load(message + i * W); }
  static SUMPROD_INLINE Vec<Real> weight(const Real* row, int v) { return splat(row[v]); }
  static SUMPROD_INLINE Vec<Real> max_over_states(Vec<Real> v) { return v; }
  static SUMPROD_INLINE Int<Real> any_over_states(Int<Real> mask) { return mask; }
  static SUMPROD_INLINE Real at(const Real* message, int64_t state, int lane) { return message[state * W + lane]; }

  static SUMPROD_INLINE Vec<Real> sum(const Real* a, int64_t states) {
    Vec<Real> total = {};
    for (int64_t i = 0; i < states; ++i) total += load(a + i * W);
    return total;
  }
  static SUMPROD_INLINE Vec<Real> dot(const Real* a, const Real* b, int64_t states) {
    Vec<Real> total = {};
    for (int64_t i = 0; i < states; ++i) total += load(a + i * W) * load(b + i * W);
    return total;
  }
};

template <class Real_>
struct LaneIsState {
  using Real = Real_;
  static constexpr int W = Simd<Real>::kWidth;
  static constexpr int kLanes = 1;
  static constexpr int kWeight = W;
  static constexpr int kMessage = 1;
  static constexpr int kMaxPanel = 8;

  static int64_t vectors(int64_t states) { return (states + W - 1) / W; }
  static SUMPROD_INLINE Vec<Real> entry(const Real* message, int64_t i) { return splat(message[i]); }
  static SUMPROD_INLINE Vec<Real> weight(const Real* row, int v) { return load(row + v * W); }
  static SUMPROD_INLINE Vec<Real> max_over_states(Vec<Real> v) { return splat(horizontal_max<Real>(v)); }
  static SUMPROD_INLINE Int<Real> any_over_states(Int<Real> mask) { return any(mask) ? ~Int<Real>{} : Int<Real>{}; }
  static SUMPROD_INLINE Real at(const Real* message, int64_t state, int) { return message[state]; }

  static SUMPROD_INLINE Vec<Real> sum(const Real* a, int64_t states) {
    Real total = 0;
    for (int64_t i = 0; i < states; ++i) total += a[i];
    return splat(total);
  }
  static SUMPROD_INLINE Vec<Real> dot(const Real* a, const Real* b, int64_t states) {
    Real total = 0;
    for (int64_t i = 0; i < states; ++i) total = multiply_add(a[i], b[i], total);
    return splat(total);
  }
};

// The sequences of one group: their indices and lengths, one per lane. Lanes without a sequence
// of their own repeat lane 0, so that they stay finite and cost no branch.
template <class Layout>
struct Lanes {
  int count;
  int64_t sequence[Layout::kLanes];
  int64_t length[Layout::kLanes];
  int64_t longest, shortest;

  Lanes(const HmmProblem& problem, const HmmGroup& group) : count(group.count), longest(0) {
    for (int l = 0; l < Layout::kLanes; ++l) {
      sequence[l] = group.sequences[l < count ? l : 0];
      length[l] = sumprod::length_of(problem, sequence[l]);
      longest = larger(longest, length[l]);
    }
    shortest = longest;
    for (int l = 0; l < count; ++l) shortest = smaller(shortest, length[l]);
  }
};

// A window of time steps held in message form, filled from (or emptied into) one strided array
// indexed [sequence, time, state]. Values past a sequence's end read as 0 and are never written.
template <class Layout, class External>
class Tile {
 public:
  using Real = typename Layout::Real;
  static constexpr int W = Layout::W;

  Tile(Arena& arena, const Lanes<Layout>& lanes, int64_t states)
      : lanes_(lanes), states_(states), vectors_(Layout::vectors(states)) {
    steps_ = larger(1, kTileBytes / (vectors_ * W * int64_t(sizeof(Real))));
    const int64_t whole = W;  // a multiple of W steps always fills whole registers
    if (steps_ > whole) steps_ -= steps_ % whole;
    steps_ = smaller(steps_, larger(1, lanes.longest));
    data_ = arena.take<Real>(round_up(steps_ * vectors_, W) * W);
  }

  void bind(External* base, int64_t sequence_stride, int64_t time_stride, int64_t state_stride) {
    for (int l = 0; l < Layout::kLanes; ++l) rows_[l] = base + lanes_.sequence[l] * sequence_stride;
    time_stride_ = time_stride;
    state_stride_ = state_stride;
    begin_ = end_ = 0;
  }

  // The message of step t; reads the window around t when it is not the current one.
  SUMPROD_INLINE Real* read(int64_t t) {
    if (t < begin_ || t >= end_) {
      place(t);
      fill();
    }
    return data_ + (t - begin_) * vectors_ * W;
  }

  // Room for the message of step t; windows are written back as the caller moves on.
  SUMPROD_INLINE Real* write(int64_t t) {
    if (t < begin_ || t >= end_) {
      flush();
      place(t);
    }
    return data_ + (t - begin_) * vectors_ * W;
  }

  void flush();

 private:
  void place(int64_t t) {
    begin_ = t / steps_ * steps_;
    end_ = smaller(begin_ + steps_, lanes_.longest);
  }
  bool is_flat() const { return sizeof(External) == sizeof(Real) && state_stride_ == 1 && time_stride_ == states_; }
  void fill();
  void fill_flat();
  Vec<Real> load_part(int l, int64_t k) const;
  void flush_flat();

  const Lanes<Layout>& lanes_;
  const int64_t states_, vectors_;
  int64_t steps_;
  External* rows_[Layout::kLanes];
  int64_t time_stride_ = 0, state_stride_ = 0;
  int64_t begin_ = 0, end_ = 0;
  Real* data_;
};

// Contiguous rows are one stream of numbers per sequence: take W of them from each of W
// sequences and transpose, whatever the number of states.
template <class Layout, class External>
void Tile<Layout, External>::fill_flat() {
  const int64_t first = begin_ * states_, last = end_ * states_;
  const int64_t whole = lanes_.shortest * states_ - W;  // up to here no lane ends inside a register
  for (int64_t k = first; k < last; k += W) {
    Vec<Real> square[W];
    if (k <= whole) {
      SUMPROD_UNROLL
      for (int l = 0; l < W; ++l) {
        const Real* source = reinterpret_cast<const Real*>(rows_[l]) + k;
        square[l] = load(source);
        __builtin_prefetch(source + kPrefetch);
      }
    } else {
      for (int l = 0; l < W; ++l) square[l] = load_part(l, k);
    }
    transpose<Real>(square);
    Real* target = data_ + (k - first) * W;
    SUMPROD_UNROLL
    for (int i = 0; i < W; ++i) store(target + i * W, square[i]);
  }
}

// The W numbers from the k-th on of lane l, zeros past its end.
template <class Layout, class External>
Vec<typename Layout::Real> Tile<Layout, External>::load_part(int l, int64_t k) const {
  const Real* source = reinterpret_cast<const Real*>(rows_[l]) + k;
  const int64_t left = smaller(lanes_.length[l] * states_ - k, W);
  Real part[W] = {};
  for (int64_t i = 0; i < left; ++i) part[i] = source[i];
  return load(part);
}

template <class Layout, class External>
void Tile<Layout, External>::flush_flat() {
  const int64_t first = begin_ * states_, last = end_ * states_;
  for (int64_t k = first; k < last; k += W) {
    Vec<Real> square[W];
    SUMPROD_UNROLL
    for (int i = 0; i < W; ++i) square[i] = load(data_ + (k - first + i) * W);
    transpose<Real>(square);
    for (int l = 0; l < lanes_.count; ++l) {
      Real* target = reinterpret_cast<Real*>(rows_[l]) + k;
      const int64_t left = smaller(lanes_.length[l] * states_, last) - k;
      if (left >= W) {
        store(target, square[l]);
      } else {
        for (int64_t i = 0; i < left; ++i) target[i] = square[l][i];
      }
    }
  }
}

template <class Layout, class External>
void Tile<Layout, External>::fill() {
  if (Layout::kLanes > 1 && is_flat()) return fill_flat();
  for (int64_t t = begin_; t < end_; ++t) {
    Real* message = data_ + (t - begin_) * vectors_ * W;
    for (int l = 0; l < Layout::kLanes; ++l) {
      const bool inside = t < lanes_.length[l];
      const External* source = rows_[l] + t * time_stride_;
      for (int64_t s = 0; s < states_; ++s) {
        const Real value = inside ? Real(source[s * state_stride_]) : Real(0);
        message[s * Layout::kMessage + l] = value;
      }
    }
    // Lanes beyond the last state must never win a maximum nor carry mass.
    if (Layout::kMessage == 1) {
      for (int64_t s = states_; s < vectors_ * W; ++s) message[s] = -kInfinity<Real>;
    }
  }
}

template <class Layout, class External>
void Tile<Layout, External>::flush() {
  if (begin_ == end_) return;
  if (Layout::kLanes > 1 && is_flat()) return flush_flat();
  for (int64_t t = begin_; t < end_; ++t) {
    const Real* message = data_ + (t - begin_) * vectors_ * W;
    for (int l = 0; l < lanes_.count; ++l) {
      if (t >= lanes_.length[l]) continue;
      External* target = rows_[l] + t * time_stride_;
      for (int64_t s = 0; s < states_; ++s) {
        target[s * state_stride_] = External(message[s * Layout::kMessage + l]);
      }
    }
  }
}

}  // namespace
