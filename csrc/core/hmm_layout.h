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

#include "core/exp_log.h"
#include "core/hmm_problem.h"

namespace {

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

}  // namespace
