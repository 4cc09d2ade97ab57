// What the GPU recursions for HMMs must know of a transition matrix, and which sequences they give up.
#pragma once

#include "gpu/hmm_arithmetic.cuh"

namespace sumprod::gpu {

// Collects what a WeightSummary says.
struct TransitionSummary {
  double highest = -infinity<double>(), lowest = infinity<double>();
  bool zero = false, invalid = false;

  template <class Real>
  SUMPROD_DEVICE void add(Real x) {
    zero |= x == -infinity<Real>();
    invalid |= !(x < infinity<Real>());
    if (x > -infinity<Real>() && x < infinity<Real>()) {
      highest = double(x) > highest ? double(x) : highest;
      lowest = double(x) < lowest ? double(x) : lowest;
    }
  }
  SUMPROD_DEVICE void add_all(const TransitionSummary& other) {
    highest = other.highest > highest ? other.highest : highest;
    lowest = other.lowest < lowest ? other.lowest : lowest;
    zero |= other.zero;
    invalid |= other.invalid;
  }
  template <class A>
  SUMPROD_DEVICE WeightSummary weights() const {
    const bool none = highest == -infinity<double>();
    const double shift = none || A::kMaxPlus ? 0.0 : highest;
    return {shift, none ? 0.0 : lowest - highest, !zero, invalid};
  }
};

// Notes what the numbers of arithmetic `A` cannot hold.
template <class A>
struct HmmTrust {
  using Real = typename A::Real;
  static constexpr float kFar = 131072;  // max-plus floats are trusted up to so far from the best

  bool watched = false, hopeless = false, redo = false;
  Real floor = 0;

  SUMPROD_DEVICE void watch(const WeightSummary& summary) {
    hopeless = summary.invalid;
    if constexpr (!A::kMaxPlus) {
      watched = !(summary.dense && summary.lowest >= LinearTrust<Real>::kDense);
      hopeless = hopeless || summary.lowest < LinearTrust<Real>::kSparse;
      if (!hopeless) floor = power_of_two(int(LinearTrust<Real>::kProduct - summary.lowest / kLn2), Real());
    }
  }

  // `sum` is over the states before; `possible` says that the emission is not -inf.
  SUMPROD_DEVICE void check(Real sum, Real message, bool possible) {
    if constexpr (A::kMaxPlus) {
      // A state so far from the best that its rounding could matter; those behind masks (-1e9 and below) are left
      // out, unless they are all that is left (note_depth).
      constexpr float kMask = -1e8f;
      const bool within = message <= kFar && !(message < -kFar && message > kMask);  // NaN is not
      if (!within) redo = true;
    } else if (watched) {
      if (sum > Real(0) && possible && message < floor) redo = true;
    }
  }

  // Max-plus, with the key of a message: all states far below what was expected two steps before have lost digits.
  SUMPROD_DEVICE void note_depth(unsigned key) {
    if constexpr (A::kMaxPlus) {
      if (key != A::kEmptyKey && from_ordered_key(key) < -kFar) redo = true;
    }
  }
};

template <class Real>
SUMPROD_DEVICE Real or_zero(Real x) {
  return x == -infinity<Real>() ? Real(0) : x;
}

}  // namespace sumprod::gpu
