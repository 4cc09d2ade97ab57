// Two ways to hold the numbers of an HMM recursion on the GPU, both relative to a scale that follows the best
// state. What they cannot hold, they report; those sequences go to the general kernels (ops/hmm_general.h).
//
//   ScaledLinear  numbers are themselves, rescaled by exact powers of two; a step is multiply-adds.
//   MaxPlus       logs, shifted; a step is additions and maxima (Viterbi).
//
// The scale is taken from the message two steps back, because finding a maximum over all states takes about as
// long as a step and would otherwise be waited for. With x_t the exponent of the best state, g_t its change in
// step t and s_t the correction made there, s_t = -(x_{t-2} + s_{t-1}) gives x_t = g_{t-1} + g_t: corrections that
// are under way are allowed for, so that nothing oscillates.
#pragma once

#include "core/hmm_problem.h"
#include "gpu/device.h"
#include "gpu/numbers.cuh"

namespace sumprod::gpu {

// Read and written in one go (two for doubles).
template <class Real>
struct alignas(16) Four {
  Real x, y, z, w;
};

constexpr double kLn2 = 0.69314718055994530942;

// A key keeps the order of numbers, so that the largest of a warp is one integer instruction, or two.
SUMPROD_DEVICE unsigned ordered_key(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits ^ (unsigned(int(bits) >> 31) | 0x80000000u);
}
SUMPROD_DEVICE float from_ordered_key(unsigned key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

SUMPROD_DEVICE unsigned long long ordered_key(double x) {
  const long long bits = __double_as_longlong(x);
  return (unsigned long long)(bits) ^ ((unsigned long long)(bits >> 63) | 1ull << 63);
}
SUMPROD_DEVICE unsigned top_of_warp(unsigned key) { return __reduce_max_sync(kFullWarp, key); }
SUMPROD_DEVICE unsigned long long top_of_warp(unsigned long long key) {
  const unsigned high = unsigned(key >> 32), top = __reduce_max_sync(kFullWarp, high);
  return (unsigned long long)(top) << 32 | __reduce_max_sync(kFullWarp, high == top ? unsigned(key) : 0u);
}

// What is known of a transition matrix: filled by TransitionSummary in gpu/hmm_trust.cuh.
struct WeightSummary {
  double shift;   // subtracted from every log potential; the largest finite one
  double lowest;  // smallest finite (log potential - shift); 0 when there is none
  bool dense;     // no log potential is -inf
  bool invalid;   // some log potential is NaN or +inf
};

// When linear numbers may be trusted. With all weights of a dense matrix at least 2^-k of the largest, the best
// state is at least 2^-2k (two steps without correction), so what falls below the smallest normal number is at most
// S * 2^(3k-126) of anything that follows (float): k = 26, 18 nats. Otherwise a sequence is kept while every possible
// state holds at least `floor` = 2^-88 / lowest weight, so that no product comes near that number.
template <class Real>
struct LinearTrust;
template <>
struct LinearTrust<float> {
  static constexpr double kDense = -18.0, kSparse = -47.0;       // lowest log weight, in nats
  static constexpr double kProduct = -88.0, kAgreement = -60.0;  // in binary orders
};
template <>
struct LinearTrust<double> {
  static constexpr double kDense = -200.0, kSparse = -415.0;
  static constexpr double kProduct = -932.0, kAgreement = -300.0;
};

// For k from -126 (-1022) to 127 (1023).
SUMPROD_DEVICE float power_of_two(int k, float) { return __int_as_float((k + 127) << 23); }
SUMPROD_DEVICE double power_of_two(int k, double) { return __longlong_as_double((long long)(k + 1023) << 52); }

template <class Real_>
struct ScaledLinear {
  using Real = Real_;
  using Scale = int;  // the binary exponent that has been added
  using ScaleSum = long long;
  static constexpr bool kMaxPlus = false;
  static constexpr unsigned kEmptyKey = 0;

  static SUMPROD_DEVICE Real zero() { return Real(0); }
  static SUMPROD_DEVICE Real one() { return Real(1); }
  static SUMPROD_DEVICE Real accumulate(Real sum, Real message, Real weight) { return sum + message * weight; }
  static SUMPROD_DEVICE Real merge(Real a, Real b) { return a + b; }
  static SUMPROD_DEVICE Real weight(Real log_weight, Real shift) { return exp(log_weight - shift); }
  // What a step multiplies a predicted message by; `top` is the largest emission of the step, or 0.
  static SUMPROD_DEVICE Real factor(Real emission, Real top) { return exp(emission - top); }
  static SUMPROD_DEVICE Real rescaled(Real sum, Scale s) { return sum * power_of_two(s, Real()); }
  static SUMPROD_DEVICE Real with_emission(Real predicted, Real factor) { return predicted * factor; }

  // The binary exponent is all that matters of the largest number.
  static SUMPROD_DEVICE unsigned key(float x) { return __float_as_uint(x); }
  static SUMPROD_DEVICE unsigned key(double x) { return unsigned((unsigned long long)(__double_as_longlong(x)) >> 32); }
  static SUMPROD_DEVICE Scale correction(unsigned key, Scale last) {
    constexpr int kShift = sizeof(Real) == 4 ? 23 : 20, kBias = sizeof(Real) == 4 ? 127 : 1023;
    const int k = key == kEmptyKey ? 0 : -(int(key >> kShift) - kBias + last);
    return k < 1 - kBias ? 1 - kBias : (k > kBias ? kBias : k);  // what power_of_two can hold
  }
  // The log of what a sum of corrections has taken out.
  static SUMPROD_DEVICE double log_of(double corrections) { return -corrections * kLn2; }
};

template <class Real_>
struct MaxPlus {
  using Real = Real_;
  using Scale = float;  // what has been subtracted
  using ScaleSum = double;
  static constexpr bool kMaxPlus = true;
  static constexpr unsigned kEmptyKey = 0x007fffffu;  // of -inf

  static SUMPROD_DEVICE Real zero() { return -infinity<Real>(); }
  static SUMPROD_DEVICE Real one() { return Real(0); }
  static SUMPROD_DEVICE Real accumulate(Real best, Real message, Real weight) { return larger(message + weight, best); }
  static SUMPROD_DEVICE Real merge(Real a, Real b) { return larger(a, b); }
  static SUMPROD_DEVICE Real weight(Real log_weight, Real) { return log_weight; }
  static SUMPROD_DEVICE Real factor(Real emission, Real top) { return emission - top; }
  static SUMPROD_DEVICE Real rescaled(Real best, Scale s) { return best - Real(s); }
  static SUMPROD_DEVICE Real with_emission(Real predicted, Real factor) { return predicted + factor; }

  static SUMPROD_DEVICE unsigned key(Real x) { return ordered_key(float(x)); }
  static SUMPROD_DEVICE Scale correction(unsigned key, Scale last) {
    return key == kEmptyKey ? 0.0f : from_ordered_key(key) - last;
  }
  static SUMPROD_DEVICE double log_of(double corrections) { return corrections; }
};

}  // namespace sumprod::gpu
