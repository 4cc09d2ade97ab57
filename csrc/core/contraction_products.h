// Sums of products in scaled arithmetic: a row times a matrix, and the gradients of both.
//
//   out[e] = sum over t of row[t] * matrix[t, e]
//
// Entries of `row` and `out` are registers of lanes; the matrix's are too, or one number for all lanes.
// Without lanes all entries are numbers and registers run along e. Blocks of accumulators stay in registers.
// Included by ops/contract_cpu.cpp only.
#pragma once

#include "core/contraction_lanes.h"

namespace {

// ---- lanes ----------------------------------------------------------------------------------

template <class Real>
SUMPROD_INLINE Vec<Real> entry(Vec<Real> x) {
  return x;
}
template <class Real>
SUMPROD_INLINE Vec<Real> entry(Real x) {
  return splat(x);
}

template <class Real, int kBlock, class Entry>
SUMPROD_NOINLINE void row_times_columns(const Vec<Real>* row, const Entry* matrix, int64_t terms, int64_t elements,
                                        Vec<Real>* out) {
  Vec<Real> sum[kBlock] = {};
  for (int64_t t = 0; t < terms; ++t, matrix += elements) {
    const Vec<Real> x = row[t];
    SUMPROD_UNROLL
    for (int i = 0; i < kBlock; ++i) sum[i] += x * entry<Real>(matrix[i]);
  }
  SUMPROD_UNROLL
  for (int i = 0; i < kBlock; ++i) out[i] = sum[i];
}

// One column: two accumulators hide the latency of a multiply-add.
template <class Real, class Entry>
SUMPROD_NOINLINE void row_times_column(const Vec<Real>* row, const Entry* matrix, int64_t terms, int64_t elements,
                                       Vec<Real>* out) {
  Vec<Real> sum = {}, other = {};
  int64_t t = 0;
  for (; t + 2 <= terms; t += 2) {
    sum += row[t] * entry<Real>(matrix[t * elements]);
    other += row[t + 1] * entry<Real>(matrix[(t + 1) * elements]);
  }
  if (t < terms) sum += row[t] * entry<Real>(matrix[t * elements]);
  *out = sum + other;
}

template <class Real, class Entry>
void row_times_matrix(const Vec<Real>* row, const Entry* matrix, int64_t terms, int64_t elements, Vec<Real>* out) {
  int64_t e = 0;
  for (; e + 8 <= elements; e += 8) row_times_columns<Real, 8>(row, matrix + e, terms, elements, out + e);
  for (; e + 4 <= elements; e += 4) row_times_columns<Real, 4>(row, matrix + e, terms, elements, out + e);
  for (; e + 2 <= elements; e += 2) row_times_columns<Real, 2>(row, matrix + e, terms, elements, out + e);
  if (e < elements) row_times_column<Real>(row, matrix + e, terms, elements, out + e);
}

// With w[e] the gradient of out[e]: grad[t, e] += row[t] * matrix[t, e] * w[e] (the gradient with respect to the
// logs), and row_grad[t] += their sum over e.
template <class Real>
SUMPROD_NOINLINE void matrix_adjoint(const Vec<Real>* row, const Vec<Real>* matrix, const Vec<Real>* w, int64_t terms,
                                     int64_t elements, Vec<Real>* grad, Vec<Real>* row_grad) {
  for (int64_t t = 0; t < terms; ++t, matrix += elements, grad += elements) {
    const Vec<Real> x = row[t];
    Vec<Real> sum = {}, other = {};
    int64_t e = 0;
    for (; e + 2 <= elements; e += 2) {
      const Vec<Real> share = x * matrix[e] * w[e], next = x * matrix[e + 1] * w[e + 1];
      grad[e] += share;
      grad[e + 1] += next;
      sum += share;
      other += next;
    }
    if (e < elements) {
      const Vec<Real> share = x * matrix[e] * w[e];
      grad[e] += share;
      sum += share;
    }
    row_grad[t] += sum + other;
  }
}

template <class Real, int kBlock>
SUMPROD_NOINLINE void shared_rows_adjoint(const Vec<Real>* row, const Real* matrix, const Vec<Real>* w,
                                          int64_t elements, Vec<Real>* row_grad) {
  Vec<Real> sum[kBlock] = {};
  for (int64_t e = 0; e < elements; ++e) {
    const Vec<Real> x = w[e];
    SUMPROD_UNROLL
    for (int i = 0; i < kBlock; ++i) sum[i] += x * splat(matrix[i * elements + e]);
  }
  SUMPROD_UNROLL
  for (int i = 0; i < kBlock; ++i) row_grad[i] += row[i] * sum[i];
}

// The share of `row` alone, for a matrix that is the same in all lanes.
template <class Real>
void shared_row_adjoint(const Vec<Real>* row, const Real* matrix, const Vec<Real>* w, int64_t terms, int64_t elements,
                        Vec<Real>* row_grad) {
  int64_t t = 0;
  for (; t + 8 <= terms; t += 8) {
    shared_rows_adjoint<Real, 8>(row + t, matrix + t * elements, w, elements, row_grad + t);
  }
  for (; t < terms; ++t) shared_rows_adjoint<Real, 1>(row + t, matrix + t * elements, w, elements, row_grad + t);
}

// The share of such a matrix, summed over the lanes: grad[t, e] += matrix[t, e] * sum over lanes of row[t] * w[e].
// `turned` is scratch: W rows of as many elements, for w with lanes and elements exchanged.
template <class Real>
SUMPROD_NOINLINE void shared_matrix_adjoint(const Vec<Real>* row, const Real* matrix, const Vec<Real>* w, int64_t terms,
                                            int64_t elements, Vec<Real>* turned, double* grad) {
  constexpr int W = Simd<Real>::kWidth;
  int64_t e = 0;
  for (; e + W <= elements; e += W) {
    SUMPROD_UNROLL
    for (int i = 0; i < W; ++i) turned[i] = w[e + i];
    transpose<Real>(turned);
    for (int64_t t = 0; t < terms; ++t) {
      const Real* x = reinterpret_cast<const Real*>(row + t);
      Vec<Real> sum = {}, other = {};
      SUMPROD_UNROLL
      for (int l = 0; l < W; l += 2) {
        sum += splat(x[l]) * turned[l];
        other += splat(x[l + 1]) * turned[l + 1];
      }
      const Vec<Real> share = load(matrix + t * elements + e) * (sum + other);
      double* to = grad + t * elements + e;
      for (int i = 0; i < W; ++i) to[i] += double(share[i]);
    }
  }
  for (; e < elements; ++e) {
    for (int64_t t = 0; t < terms; ++t) {
      const Vec<Real> product = row[t] * w[e];
      Real sum = 0;
      for (int l = 0; l < W; ++l) sum += product[l];
      grad[t * elements + e] += double(matrix[t * elements + e] * sum);
    }
  }
}

// ---- no lanes -------------------------------------------------------------------------------

// Elements from e on: W of them, or what is left.
template <class Real>
SUMPROD_INLINE Vec<Real> some(const Real* p, int64_t count) {
  return count >= Simd<Real>::kWidth ? load(p) : load_partial<Real>(p, count, Real(0));
}
template <class Real>
SUMPROD_INLINE void put_some(Real* p, int64_t count, Vec<Real> v) {
  if (count >= Simd<Real>::kWidth) {
    store(p, v);
  } else {
    store_partial<Real>(p, count, v);
  }
}

template <class Real, int kBlock>
SUMPROD_NOINLINE void row_times_registers(const Real* row, const Real* matrix, int64_t terms, int64_t elements,
                                          Real* out) {
  constexpr int W = Simd<Real>::kWidth;
  Vec<Real> sum[kBlock] = {};
  for (int64_t t = 0; t < terms; ++t, matrix += elements) {
    const Vec<Real> x = splat(row[t]);
    SUMPROD_UNROLL
    for (int i = 0; i < kBlock; ++i) sum[i] += x * load(matrix + i * W);
  }
  SUMPROD_UNROLL
  for (int i = 0; i < kBlock; ++i) store(out + i * W, sum[i]);
}

template <class Real>
void row_times_matrix(const Real* row, const Real* matrix, int64_t terms, int64_t elements, Real* out) {
  constexpr int W = Simd<Real>::kWidth;
  int64_t e = 0;
  for (; e + 8 * W <= elements; e += 8 * W) row_times_registers<Real, 8>(row, matrix + e, terms, elements, out + e);
  for (; e + 2 * W <= elements; e += 2 * W) row_times_registers<Real, 2>(row, matrix + e, terms, elements, out + e);
  for (; e < elements; e += W) {
    const int64_t count = elements - e;
    Vec<Real> sum = {}, other = {};
    int64_t t = 0;
    for (; t + 2 <= terms; t += 2) {
      sum += splat(row[t]) * some(matrix + t * elements + e, count);
      other += splat(row[t + 1]) * some(matrix + (t + 1) * elements + e, count);
    }
    if (t < terms) sum += splat(row[t]) * some(matrix + t * elements + e, count);
    put_some(out + e, count, sum + other);
  }
}

template <class Real>
SUMPROD_NOINLINE void matrix_adjoint(const Real* row, const Real* matrix, const Real* w, int64_t terms,
                                     int64_t elements, Real* grad, Real* row_grad) {
  constexpr int W = Simd<Real>::kWidth;
  for (int64_t t = 0; t < terms; ++t, matrix += elements, grad += elements) {
    const Vec<Real> x = splat(row[t]);
    Vec<Real> sum = {};
    for (int64_t e = 0; e < elements; e += W) {
      const int64_t count = elements - e;
      const Vec<Real> share = x * some(matrix + e, count) * some(w + e, count);
      put_some(grad + e, count, some(grad + e, count) + share);
      sum += share;
    }
    Real total = 0;
    for (int l = 0; l < W; ++l) total += sum[l];
    row_grad[t] += total;
  }
}

}  // namespace
