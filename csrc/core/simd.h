// Vectors of one machine register.
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
#define SUMPROD_NOINLINE __attribute__((noinline))
#define SUMPROD_INLINE_LAMBDA __attribute__((always_inline))

// Loops over a block of accumulators must unroll entirely, or the accumulators live in memory.
#define SUMPROD_UNROLL _Pragma("GCC unroll 16")

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
  // exp() clamps here: x rounds to n = -127, whose power of two is made from zero bits, so is 0.
  static constexpr float kExpLowest = -88.0f;
  // ln 2 in two parts; the first has so few bits that n * kLn2High is exact for |n| < 2^15.
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kLog2E = 1.44269504088896340736f;
  static constexpr float kLargest = 3.40282347e38f;
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
  static constexpr double kExpLowest = -709.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr double kLargest = 1.7976931348623157e308;
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

// All bits set in the first `count` lanes.
template <class Real>
SUMPROD_INLINE Int<Real> lanes_below(int64_t count) {
  Int<Real> lane;
  for (int l = 0; l < Simd<Real>::kWidth; ++l) lane[l] = l;
  return lane < typename Simd<Real>::Bits(count);
}

// The first `count` lanes from memory (nothing is read past them), the others `fill`.
template <class Real>
SUMPROD_INLINE Vec<Real> load_partial(const Real* p, int64_t count, Real fill) {
#if SUMPROD_VECTOR_BYTES == 64 && defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1u;
  if constexpr (sizeof(Real) == 4) {
    return (Vec<Real>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16(mask), p);
  } else {
    return (Vec<Real>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), __mmask8(mask), p);
  }
#elif SUMPROD_VECTOR_BYTES == 32 && defined(__AVX2__)
  const Int<Real> mask = lanes_below<Real>(count);
  if constexpr (sizeof(Real) == 4) {
    return mask ? (Vec<Real>)_mm256_maskload_ps(p, (__m256i)mask) : splat(fill);
  } else {
    return mask ? (Vec<Real>)_mm256_maskload_pd(p, (__m256i)mask) : splat(fill);
  }
#else
  Real part[Simd<Real>::kWidth];
  for (int i = 0; i < Simd<Real>::kWidth; ++i) part[i] = i < count ? p[i] : fill;
  return load(part);
#endif
}

template <class Real>
SUMPROD_INLINE void store_partial(Real* p, int64_t count, Vec<Real> v) {
#if SUMPROD_VECTOR_BYTES == 64 && defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1u;
  if constexpr (sizeof(Real) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16(mask), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(p, __mmask8(mask), (__m512d)v);
  }
#elif SUMPROD_VECTOR_BYTES == 32 && defined(__AVX2__)
  const Int<Real> mask = lanes_below<Real>(count);
  if constexpr (sizeof(Real) == 4) {
    _mm256_maskstore_ps(p, (__m256i)mask, (__m256)v);
  } else {
    _mm256_maskstore_pd(p, (__m256i)mask, (__m256d)v);
  }
#else
  Real part[Simd<Real>::kWidth];
  store(part, v);
  for (int i = 0; i < Simd<Real>::kWidth && i < count; ++i) p[i] = part[i];
#endif
}

SUMPROD_INLINE IntF as_bits(VecF v) { return (IntF)v; }
SUMPROD_INLINE IntD as_bits(VecD v) { return (IntD)v; }
SUMPROD_INLINE VecF as_real(IntF v) { return (VecF)v; }
SUMPROD_INLINE VecD as_real(IntD v) { return (VecD)v; }

// Lane-wise maximum in one instruction, where the compiler does not find it by itself (it may not
// reorder operands around NaN). If either side is NaN, the result is `b`.
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

// A one that the compiler cannot see through: a * opaque_one + b is a + b to the bit, but runs in
// the multiply-add units. Where adders and multipliers are apart (Zen), the adders also do maxima,
// and max(a + b, c) runs at twice the rate this way. Without FMA it would be slower, so there
// add_beside_max() just adds.
template <class Real>
SUMPROD_INLINE Vec<Real> opaque_one() {
  Vec<Real> one = splat(Real(1));
#if defined(__AVX2__)
  __asm__("" : "+v"(one));
#endif
  return one;
}
template <class V>
SUMPROD_INLINE V add_beside_max(V a, V b, V one) {
#if defined(__FMA__)
  return a * one + b;
#else
  (void)one;
  return a + b;
#endif
}

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
SUMPROD_INLINE VecD interleave_low(VecD a, VecD b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
SUMPROD_INLINE VecD interleave_high(VecD a, VecD b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#elif SUMPROD_VECTOR_BYTES == 32
SUMPROD_INLINE VecF interleave_low(VecF a, VecF b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
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

// The inverse of interleave_low and interleave_high: every other lane of a and b together.
#if SUMPROD_VECTOR_BYTES == 64
SUMPROD_INLINE VecF take_even(VecF a, VecF b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
SUMPROD_INLINE VecF take_odd(VecF a, VecF b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
SUMPROD_INLINE VecD take_even(VecD a, VecD b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
SUMPROD_INLINE VecD take_odd(VecD a, VecD b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
#elif SUMPROD_VECTOR_BYTES == 32
SUMPROD_INLINE VecF take_even(VecF a, VecF b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
SUMPROD_INLINE VecF take_odd(VecF a, VecF b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
SUMPROD_INLINE VecD take_even(VecD a, VecD b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
SUMPROD_INLINE VecD take_odd(VecD a, VecD b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
#else
SUMPROD_INLINE VecF take_even(VecF a, VecF b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
SUMPROD_INLINE VecF take_odd(VecF a, VecF b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
SUMPROD_INLINE VecD take_even(VecD a, VecD b) { return __builtin_shufflevector(a, b, 0, 2); }
SUMPROD_INLINE VecD take_odd(VecD a, VecD b) { return __builtin_shufflevector(a, b, 1, 3); }
#endif

// Transposes a square of W vectors of W entries: log2(W) perfect shuffles.
template <class Real>
SUMPROD_INLINE void transpose(Vec<Real>* rows) {
  constexpr int kWidth = Simd<Real>::kWidth;
  Vec<Real> other[kWidth];
  SUMPROD_UNROLL
  for (int stage = 1; stage < kWidth; stage *= 2) {
    SUMPROD_UNROLL
    for (int i = 0; i < kWidth / 2; ++i) {
      other[2 * i] = interleave_low(rows[i], rows[i + kWidth / 2]);
      other[2 * i + 1] = interleave_high(rows[i], rows[i + kWidth / 2]);
    }
    SUMPROD_UNROLL
    for (int i = 0; i < kWidth; ++i) rows[i] = other[i];
  }
}

#if SUMPROD_VECTOR_BYTES == 64 && defined(__AVX512F__)
// 16 x 16 floats: a perfect shuffle crosses the whole register and costs twice an in-lane one, so
// transpose 4 x 4 blocks within 128-bit lanes, then the lanes.
template <>
SUMPROD_INLINE void transpose<float>(VecF* rows) {
  __m512 a[16], b[16];
  SUMPROD_UNROLL
  for (int i = 0; i < 16; i += 4) {
    const __m512 r0 = (__m512)rows[i], r1 = (__m512)rows[i + 1], r2 = (__m512)rows[i + 2], r3 = (__m512)rows[i + 3];
    const __m512d t0 = (__m512d)_mm512_unpacklo_ps(r0, r1), t1 = (__m512d)_mm512_unpackhi_ps(r0, r1);
    const __m512d t2 = (__m512d)_mm512_unpacklo_ps(r2, r3), t3 = (__m512d)_mm512_unpackhi_ps(r2, r3);
    a[i] = (__m512)_mm512_unpacklo_pd(t0, t2);
    a[i + 1] = (__m512)_mm512_unpackhi_pd(t0, t2);
    a[i + 2] = (__m512)_mm512_unpacklo_pd(t1, t3);
    a[i + 3] = (__m512)_mm512_unpackhi_pd(t1, t3);
  }
  SUMPROD_UNROLL
  for (int k = 0; k < 4; ++k) {
    b[k] = _mm512_shuffle_f32x4(a[k], a[k + 4], 0x88);
    b[k + 4] = _mm512_shuffle_f32x4(a[k], a[k + 4], 0xdd);
    b[k + 8] = _mm512_shuffle_f32x4(a[k + 8], a[k + 12], 0x88);
    b[k + 12] = _mm512_shuffle_f32x4(a[k + 8], a[k + 12], 0xdd);
  }
  SUMPROD_UNROLL
  for (int k = 0; k < 4; ++k) {
    rows[k] = (VecF)_mm512_shuffle_f32x4(b[k], b[k + 8], 0x88);
    rows[k + 8] = (VecF)_mm512_shuffle_f32x4(b[k], b[k + 8], 0xdd);
    rows[k + 4] = (VecF)_mm512_shuffle_f32x4(b[k + 4], b[k + 12], 0x88);
    rows[k + 12] = (VecF)_mm512_shuffle_f32x4(b[k + 4], b[k + 12], 0xdd);
  }
}
#endif

template <class Real>
SUMPROD_INLINE Real horizontal_max(Vec<Real> v) {
  Real best = v[0];
  for (int i = 1; i < Simd<Real>::kWidth; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// a * b + c as vector code compiles to it: fused where the level has FMA. Scalar loops that must
// give the same bits say so explicitly, since the compiler may vectorise their products alone.
SUMPROD_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
SUMPROD_INLINE double multiply_add(double a, double b, double c) {
#if defined(__FMA__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
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
