// Vectors of one machine register, and the two transcendental functions the kernels need.
//
// Included only by *_cpu.cpp files, each of which is compiled once per ISA level with
// SUMPROD_VECTOR_BYTES = 16, 32 or 64. Everything lives in an unnamed namespace: were these
// templates linked across levels, the linker could keep an AVX-512 body for a baseline caller.
//
// Built on the vector extensions shared by GCC (12 or newer) and Clang; no fast-math anywhere,
// because infinities and NaN carry meaning here.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef SUMPROD_VECTOR_BYTES
#error "compile through sumprod_add_kernel() in CMakeLists.txt, which sets SUMPROD_VECTOR_BYTES"
#endif

#define SUMPROD_INLINE inline __attribute__((always_inline))
#define SUMPROD_INLINE_LAMBDA __attribute__((always_inline))

namespace {

typedef float VecF __attribute__((vector_size(SUMPROD_VECTOR_BYTES)));
typedef int32_t IntF __attribute__((vector_size(SUMPROD_VECTOR_BYTES)));
typedef double VecD __attribute__((vector_size(SUMPROD_VECTOR_BYTES)));
typedef int64_t IntD __attribute__((vector_size(SUMPROD_VECTOR_BYTES)));

// kMaxExponent: scale of the largest power of two; kMantissaBits: stored bits of the mantissa.
template <class Real>
struct Simd;

template <>
struct Simd<float> {
  using Vec = VecF;
  using Int = IntF;
  using Bits = int32_t;
  static constexpr int kWidth = SUMPROD_VECTOR_BYTES / 4;
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kRoundLimit = 4194304.0f;
  static constexpr float kExpLowest = -104.0f;  // exp(x) is 0 below, even as a denormal
  // ln 2 in two parts; the first has so few bits that n * kLn2High is exact for |n| < 2^15.
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kLog2E = 1.44269504088896340736f;
};

template <>
struct Simd<double> {
  using Vec = VecD;
  using Int = IntD;
  using Bits = int64_t;
  static constexpr int kWidth = SUMPROD_VECTOR_BYTES / 8;
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kRoundLimit = 2251799813685248.0;
  static constexpr double kExpLowest = -746.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLog2E = 1.44269504088896340736;
};

template <class Real>
using Vec = typename Simd<Real>::Vec;
template <class Real>
using Int = typename Simd<Real>::Int;

template <class Real>
constexpr Real kInfinity = Real(__builtin_inf());

// ---- loads, stores, broadcast -------------------------------------------------------------

template <class Real>
SUMPROD_INLINE Vec<Real> load(const Real* p) {
  Vec<Real> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Real>
SUMPROD_INLINE void store(Real* p, Vec<Real> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// `x - zero` and not `zero + x`: only the first folds to a bare broadcast without fast-math.
template <class Real>
SUMPROD_INLINE Vec<Real> splat(Real x) {
  return x - Vec<Real>{};
}

SUMPROD_INLINE IntF as_bits(VecF v) { return (IntF)v; }
SUMPROD_INLINE IntD as_bits(VecD v) { return (IntD)v; }
SUMPROD_INLINE VecF as_real(IntF v) { return (VecF)v; }
SUMPROD_INLINE VecD as_real(IntD v) { return (VecD)v; }

// A NaN in `a` is kept, a NaN in `b` is dropped: callers pass the fresh value as `a`.
template <class V>
SUMPROD_INLINE V max_keep_left(V a, V b) {
  return a < b ? b : a;
}

// The same as one instruction where the compiler does not find it by itself (it may not reorder
// operands around NaN). If either side is NaN, the result is `b`.
#if SUMPROD_VECTOR_BYTES == 64 && defined(__AVX512F__)
SUMPROD_INLINE VecF max_fast(VecF a, VecF b) { return (VecF)_mm512_max_ps((__m512)a, (__m512)b); }
SUMPROD_INLINE VecD max_fast(VecD a, VecD b) { return (VecD)_mm512_max_pd((__m512d)a, (__m512d)b); }
#elif SUMPROD_VECTOR_BYTES == 32 && defined(__AVX__)
SUMPROD_INLINE VecF max_fast(VecF a, VecF b) { return (VecF)_mm256_max_ps((__m256)a, (__m256)b); }
SUMPROD_INLINE VecD max_fast(VecD a, VecD b) { return (VecD)_mm256_max_pd((__m256d)a, (__m256d)b); }
#elif SUMPROD_VECTOR_BYTES == 16 && defined(__SSE2__)
SUMPROD_INLINE VecF max_fast(VecF a, VecF b) { return (VecF)_mm_max_ps((__m128)a, (__m128)b); }
SUMPROD_INLINE VecD max_fast(VecD a, VecD b) { return (VecD)_mm_max_pd((__m128d)a, (__m128d)b); }
#else
template <class V>
SUMPROD_INLINE V max_fast(V a, V b) {
  return a > b ? a : b;
}
#endif

// True when some lane of a comparison's result is set.
template <class I>
SUMPROD_INLINE bool any(I mask) {
#if SUMPROD_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif SUMPROD_VECTOR_BYTES == 32 && defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif SUMPROD_VECTOR_BYTES == 16 && defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  bool found = false;
  for (unsigned i = 0; i < sizeof(I) / sizeof(mask[0]); ++i) found = found || mask[i] != 0;
  return found;
#endif
}

// ---- interleave and transpose -------------------------------------------------------------

#if SUMPROD_VECTOR_BYTES == 64
SUMPROD_INLINE VecF interleave_low(VecF a, VecF b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
SUMPROD_INLINE VecF interleave_high(VecF a, VecF b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
SUMPROD_INLINE VecD interleave_low(VecD a, VecD b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
SUMPROD_INLINE VecD interleave_high(VecD a, VecD b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#elif SUMPROD_VECTOR_BYTES == 32
SUMPROD_INLINE VecF interleave_low(VecF a, VecF b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
SUMPROD_INLINE VecF interleave_high(VecF a, VecF b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
SUMPROD_INLINE VecD interleave_low(VecD a, VecD b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
SUMPROD_INLINE VecD interleave_high(VecD a, VecD b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#else
SUMPROD_INLINE VecF interleave_low(VecF a, VecF b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
SUMPROD_INLINE VecF interleave_high(VecF a, VecF b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
SUMPROD_INLINE VecD interleave_low(VecD a, VecD b) { return __builtin_shufflevector(a, b, 0, 2); }
SUMPROD_INLINE VecD interleave_high(VecD a, VecD b) { return __builtin_shufflevector(a, b, 1, 3); }
#endif

// Transposes a square of W vectors of W entries: log2(W) perfect shuffles.
template <class Real>
SUMPROD_INLINE void transpose(Vec<Real>* rows) {
  constexpr int kWidth = Simd<Real>::kWidth;
  Vec<Real> other[kWidth];
  for (int stage = 1; stage < kWidth; stage *= 2) {
    for (int i = 0; i < kWidth / 2; ++i) {
      other[2 * i] = interleave_low(rows[i], rows[i + kWidth / 2]);
      other[2 * i + 1] = interleave_high(rows[i], rows[i + kWidth / 2]);
    }
    for (int i = 0; i < kWidth; ++i) rows[i] = other[i];
  }
}

template <class Real>
SUMPROD_INLINE Real horizontal_max(Vec<Real> v) {
  Real best = v[0];
  for (int i = 1; i < Simd<Real>::kWidth; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

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
  x = x < T::kExpLowest ? splat(T::kExpLowest) : x;  // NaN compares false and passes
  const Vec<Real> shifted = x * T::kLog2E + T::kRound;
  const Vec<Real> n = shifted - T::kRound;
  const Vec<Real> r = (x - n * T::kLn2High) - n * T::kLn2Low;
  Int<Real> biased = as_bits(shifted) - as_bits(splat(T::kRound)) + T::kBias;
  biased = biased > 0 ? biased : biased * 0;
  return exp_polynomial(r) * as_real(biased << T::kMantissaBits);
}

// exp(x) = mantissa * 2^exponent with an integer-valued exponent of any size, so that nothing
// underflows. exp(-inf) is (0, -inf); NaN gives a NaN mantissa.
template <class Real>
SUMPROD_INLINE void exp_split(Vec<Real> x, Vec<Real>& mantissa, Vec<Real>& exponent) {
  using T = Simd<Real>;
  const Int<Real> zero = x == -kInfinity<Real>;
  const Vec<Real> safe = zero ? splat(Real(0)) : x;
  const Vec<Real> t = safe * T::kLog2E;
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

// ---- denormals ----------------------------------------------------------------------------

// Linear-space recursions make denormals by the million, each costing a microcode assist:
// flush them while a kernel runs, and give the thread its old mode back.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  SUMPROD_INLINE FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  SUMPROD_INLINE ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  SUMPROD_INLINE FlushDenormals() {}
#endif
};

}  // namespace
