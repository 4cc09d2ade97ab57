// Exponential, logarithm and exact powers of two over vectors; accuracy about 1 ulp.
//
// No table and no library: the kernels are compiled once per instruction set, and must give the
// same bits for a number wherever in a vector it stands.
#pragma once

#include "core/simd.h"

namespace {

// ---- powers of two ------------------------------------------------------------------------

// 2^n for integer-valued n <= 0; anything below the smallest normal number becomes 0.
template <class Real>
SUMPROD_INLINE Vec<Real> pow2_nonpositive(Vec<Real> n) {
  using T = Simd<Real>;
  n = n < Real(-T::kBias) ? splat(Real(-T::kBias)) : n;
  const Int<Real> i = as_bits(n + T::kRound) - as_bits(splat(T::kRound));
  return as_real((i + T::kBias) << T::kMantissaBits);
}

// The exponent k of x = f * 2^k with f in [1, 2); for 0 (and denormals) and non-finite x, 0.
template <class Real>
SUMPROD_INLINE Int<Real> exponent_of(Vec<Real> x) {
  using T = Simd<Real>;
  const Int<Real> biased = (as_bits(x) >> T::kMantissaBits) & (2 * T::kBias + 1);
  const Int<Real> usable = (biased > 0) & (biased < 2 * T::kBias + 1);
  return (biased - T::kBias) & usable;
}

// 2^-k for k from exponent_of().
template <class Real>
SUMPROD_INLINE Vec<Real> pow2_negated(Int<Real> k) {
  using T = Simd<Real>;
  const Int<Real> biased = T::kBias - k;
  return as_real((biased > 0 ? biased : biased * 0 + 1) << T::kMantissaBits);
}

// ---- exp and log --------------------------------------------------------------------------

SUMPROD_INLINE VecF exp_polynomial(VecF r) {  // |r| <= ln(2)/2, least-squares minimax, 0.05 ulp
  VecF q = 0.00138145f * r + 0.00836878f;
  q = q * r + 0.04166839f;
  q = q * r + 0.1666652f;
  q = q * r + 0.49999993f;
  return (q * (r * r) + r) + 1.0f;
}

SUMPROD_INLINE VecD exp_polynomial(VecD r) {  // Taylor to degree 13: remainder below 5e-18
  VecD q = (1.0 / 6227020800.0) * r + 1.0 / 479001600.0;
  q = q * r + 1.0 / 39916800.0;
  q = q * r + 1.0 / 3628800.0;
  q = q * r + 1.0 / 362880.0;
  q = q * r + 1.0 / 40320.0;
  q = q * r + 1.0 / 5040.0;
  q = q * r + 1.0 / 720.0;
  q = q * r + 1.0 / 120.0;
  q = q * r + 1.0 / 24.0;
  q = q * r + 1.0 / 6.0;
  q = q * r + 0.5;
  return (q * (r * r) + r) + 1.0;
}

// exp(x) for x <= 0; exp(-inf) = 0, NaN stays NaN; results below the smallest normal become 0.
template <class Real>
SUMPROD_INLINE Vec<Real> exp_nonpositive(Vec<Real> x) {
  using T = Simd<Real>;
  x = max_fast(splat(T::kExpLowest), x);  // NaN passes
  const Vec<Real> shifted = x * T::kLog2E + T::kRound;
  const Vec<Real> n = shifted - T::kRound;
  const Vec<Real> r = (x - n * T::kLn2High) - n * T::kLn2Low;
  const Int<Real> biased = as_bits(shifted) + (T::kBias - as_bits(splat(T::kRound)));
  return exp_polynomial(r) * as_real(biased << T::kMantissaBits);
}

// exp(x) = mantissa * 2^exponent with an integer-valued exponent of any size, so that nothing
// underflows. exp(-inf) is (0, -inf); NaN gives a NaN mantissa.
template <class Real>
SUMPROD_INLINE void exp_split(Vec<Real> x, Vec<Real>& mantissa, Vec<Real>& exponent) {
  using T = Simd<Real>;
  const Int<Real> zero = x == -kInfinity<Real>;
  const Vec<Real> safe = zero ? splat(Real(0)) : x;
  // The exponent of the lowest finite x (a popular mask) would overflow: it saturates.
  Vec<Real> t = safe * T::kLog2E;
  t = t == -kInfinity<Real> ? splat(-T::kLargest) : t;
  // Beyond kRoundLimit the spacing of t is at least 1/2 already; there it stands for itself.
  const Int<Real> small = (t < T::kRoundLimit) & (t > -T::kRoundLimit);
  const Vec<Real> n = small ? (t + T::kRound) - T::kRound : t;
  Vec<Real> r = (safe - n * T::kLn2High) - n * T::kLn2Low;
  r = r < Real(-0.5) ? splat(Real(-0.5)) : (r > Real(0.5) ? splat(Real(0.5)) : r);
  mantissa = zero ? splat(Real(0)) : exp_polynomial(r);
  exponent = zero ? splat(-kInfinity<Real>) : n;
}

SUMPROD_INLINE VecF log_series(VecF s, VecF z) {
  VecF q = (2.0f / 9.0f) * z + 2.0f / 7.0f;
  q = q * z + 2.0f / 5.0f;
  q = q * z + 2.0f / 3.0f;
  return q * (s * z);
}

SUMPROD_INLINE VecD log_series(VecD s, VecD z) {
  VecD q = (2.0 / 21.0) * z + 2.0 / 19.0;
  q = q * z + 2.0 / 17.0;
  q = q * z + 2.0 / 15.0;
  q = q * z + 2.0 / 13.0;
  q = q * z + 2.0 / 11.0;
  q = q * z + 2.0 / 9.0;
  q = q * z + 2.0 / 7.0;
  q = q * z + 2.0 / 5.0;
  q = q * z + 2.0 / 3.0;
  return q * (s * z);
}

// log(x) for x >= 0: log(0) = -inf, log(inf) = inf, NaN stays NaN; denormals count as 0.
// With m in [sqrt(1/2), sqrt(2)) and s = (m-1)/(m+1): log m = 2s + 2s^3/3 + 2s^5/5 + ...
template <class Real>
SUMPROD_INLINE Vec<Real> log_nonnegative(Vec<Real> x) {
  using T = Simd<Real>;
  const Int<Real> sqrt_half = as_bits(splat(Real(0.70710678118654752440)));
  const Int<Real> n = (as_bits(x) - sqrt_half) >> T::kMantissaBits;
  const Vec<Real> f = as_real(as_bits(x) - (n << T::kMantissaBits)) - Real(1);
  const Vec<Real> s = f / (f + Real(2));
  const Vec<Real> k = as_real(as_bits(splat(T::kRound)) + n) - T::kRound;
  Vec<Real> result = log_series(s, s * s) + k * T::kLn2Low;
  result = (result + Real(2) * s) + k * T::kLn2High;
  const Real smallest = sizeof(Real) == 4 ? Real(1.17549435e-38) : Real(2.2250738585072014e-308);
  result = x < smallest ? splat(-kInfinity<Real>) : result;
  return x < kInfinity<Real> ? result : x;
}

}  // namespace
