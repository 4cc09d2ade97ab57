// Two ways to hold the numbers of a sum-product recursion over one step.
//
//   Linear    a number is itself. Messages are scaled by exact powers of two, transitions are
//             exponentiated once, and a step is S*S multiply-adds. Mass can vanish when a
//             product falls below the smallest normal number; the passes detect when that
//             could matter (see hmm_passes.h).
//   Extended  a number is mantissa * 2^exponent, both floating point, the exponent
//             integer-valued: nothing vanishes. Two sweeps per step, the largest exponent and
//             then the scaled sum, and still no exp or log inside.
//
// The recursions are written once over the vocabulary that both define.
#pragma once

#include "core/hmm_layout.h"

namespace {

// Sums of W numbers kept in double whatever their precision.
template <class Real>
class DoubleSum;

template <>
class DoubleSum<double> {
 public:
  SUMPROD_INLINE void add(VecD v) { total_ += v; }
  void clear(int l) { total_[l] = 0.0; }
  double lane(int l) const { return total_[l]; }

 private:
  VecD total_ = {};
};

template <>
class DoubleSum<float> {
 public:
  SUMPROD_INLINE void add(VecF v) {
#if SUMPROD_VECTOR_BYTES == 64
    low_ += __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), VecD);
    high_ += __builtin_convertvector(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), VecD);
#elif SUMPROD_VECTOR_BYTES == 32
    low_ += __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3), VecD);
    high_ += __builtin_convertvector(__builtin_shufflevector(v, v, 4, 5, 6, 7), VecD);
#else
    low_ += __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1), VecD);
    high_ += __builtin_convertvector(__builtin_shufflevector(v, v, 2, 3), VecD);
#endif
  }
  void clear(int l) {
    if (l < kHalf) {
      low_[l] = 0.0;
    } else {
      high_[l - kHalf] = 0.0;
    }
  }
  double lane(int l) const { return l < kHalf ? low_[l] : high_[l - kHalf]; }

 private:
  static constexpr int kHalf = Simd<double>::kWidth;
  VecD low_ = {}, high_ = {};
};

// exp(transition - shift), stored in panels of `panel` vectors: panel by panel, row (from-state)
// by row, so that a block of accumulators walks memory in one stream.
template <class Real>
struct Weights {
  const Real* mantissa;
  const Real* exponent;  // null in linear space
  int64_t panel;         // vectors per panel
  double shift;          // subtracted from every log potential before exponentiation
  double lowest;         // smallest finite (log potential - shift); 0 when there is none
  bool dense;            // no log potential is -inf
  bool invalid;          // some log potential is NaN or +inf
};

template <class Layout>
int64_t panel_vectors(int64_t states) {
  return smaller(Layout::vectors(states), Layout::kMaxPanel);
}

// Where the weight of vector v of row i is, in weights from the start of the matrix.
SUMPROD_INLINE int64_t panel_index(int64_t panel, int64_t states, int64_t i, int64_t v) {
  return v / panel * panel * states + i * panel + v % panel;
}

// Reals that one part (mantissa or exponent) of a weight matrix takes.
template <class Layout>
int64_t weight_size(int64_t states) {
  const int64_t panel = panel_vectors<Layout>(states) * Layout::kWeight;
  // A register of slack: reading a whole one at the last row stays inside.
  return round_up(Layout::vectors(states) * Layout::kWeight, panel) * states + Layout::W;
}

template <int N>
struct Size {
  static constexpr int value = N;
};

// Splits the vectors of a message into blocks of accumulators that fit the registers:
// f(Size<N>, first row of the block's weights, reals from one row to the next, first vector).
template <class Layout, class Real, class F>
SUMPROD_INLINE void for_each_block(const Weights<Real>& weights, int64_t states, F f) {
  const int64_t vectors = Layout::vectors(states), row = weights.panel * Layout::kWeight;
  for (int64_t first = 0; first < vectors; first += weights.panel) {
    const Real* rows = weights.mantissa + first * Layout::kWeight * states;
    const int64_t last = smaller(first + weights.panel, vectors);
    int64_t v = first;
    if constexpr (Layout::kMaxPanel >= 16) {
      for (; v + 16 <= last; v += 16, rows += 16 * Layout::kWeight) f(Size<16>{}, rows, row, v);
    }
    for (; v + 8 <= last; v += 8, rows += 8 * Layout::kWeight) f(Size<8>{}, rows, row, v);
    for (; v + 4 <= last; v += 4, rows += 4 * Layout::kWeight) f(Size<4>{}, rows, row, v);
    for (; v + 2 <= last; v += 2, rows += 2 * Layout::kWeight) f(Size<2>{}, rows, row, v);
    for (; v < last; v += 1, rows += Layout::kWeight) f(Size<1>{}, rows, row, v);
  }
}

// Calls use(at), where at(rows, i) is, per lane l, the weight of row i (from-state) and column
// index[l] (to-state) of a matrix in panels; lane = sequence. A few columns are looked up by
// permuting registers, more are gathered.
template <class Real, class Use>
SUMPROD_INLINE void with_columns(int64_t panel, int64_t states, Int<Real> index, Use use) {
  constexpr int W = Simd<Real>::kWidth;
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (kBlock == W) {
    const int64_t next = panel * states;
    if (states <= W) {
      return use([=](const Real* rows, int64_t i)
                     SUMPROD_INLINE_LAMBDA { return __builtin_shuffle(load(rows + i * panel), index); });
    }
    if (states <= 2 * W) {
      return use([=](const Real* rows, int64_t i) SUMPROD_INLINE_LAMBDA {
        const Real* row = rows + i * panel;
        return __builtin_shuffle(load(row), load(row + next), index);
      });
    }
    if (states <= 4 * W) {
      const int64_t fourth = states > 3 * W ? 3 * next : 2 * next;
      return use([=](const Real* rows, int64_t i) SUMPROD_INLINE_LAMBDA {
        const Real* row = rows + i * panel;
        const Vec<Real> low = __builtin_shuffle(load(row), load(row + next), index);
        const Vec<Real> high = __builtin_shuffle(load(row + 2 * next), load(row + fourth), index);
        return index < 2 * W ? low : high;
      });
    }
  }
#endif
  int64_t offset[W];
  for (int l = 0; l < W; ++l) offset[l] = panel_index(panel, states, 0, index[l]);
  use([&](const Real* rows, int64_t i) SUMPROD_INLINE_LAMBDA {
    Vec<Real> result = {};
    SUMPROD_UNROLL
    for (int l = 0; l < W; ++l) result[l] = rows[i * panel + offset[l]];
    return result;
  });
}

// ---- Linear -------------------------------------------------------------------------------

template <class Layout_>
struct Linear {
  using Layout = Layout_;
  using Real = typename Layout::Real;
  using V = Vec<Real>;
  static constexpr bool kExtended = false, kExponentiates = true;
  static constexpr int W = Layout::W;
  static constexpr int kParts = 1;  // reals per number

  struct Number {
    V f;
  };
  // A pending power of two: `factor` multiplies the next message.
  struct Scale {
    V factor;
    V exponent;  // log2 of what has been taken out
  };

  static SUMPROD_INLINE Number one() { return {splat(Real(1))}; }
  static SUMPROD_INLINE Number get(const Real* message, int64_t v, int64_t) { return {load(message + v * W)}; }
  static SUMPROD_INLINE void put(Real* message, int64_t v, int64_t, Number x) { store(message + v * W, x.f); }
  static SUMPROD_INLINE Number exp(V x) { return {exp_nonpositive<Real>(x)}; }
  static SUMPROD_INLINE Number multiply(Number a, Number b) { return {a.f * b.f}; }
  static SUMPROD_INLINE Number select(Int<Real> mask, Number a, Number b) { return {mask ? a.f : b.f}; }

  static SUMPROD_INLINE V peak_start() { return V{}; }
  static SUMPROD_INLINE V peak(Number x, V so_far) { return max_fast(x.f, so_far); }
  static SUMPROD_INLINE Scale scale_from(V peak) {
    const Int<Real> k = exponent_of<Real>(peak);
    return {pow2_negated<Real>(k), as_real(as_bits(splat(Simd<Real>::kRound)) + k) - Simd<Real>::kRound};
  }
  static SUMPROD_INLINE Number rescale(Number x, Scale s) { return {x.f * s.factor}; }

  // sum over states of a message, and of the product of two.
  static SUMPROD_INLINE Number sum(const Real* a, int64_t states, int64_t) { return {Layout::sum(a, states)}; }
  static SUMPROD_INLINE Number dot(const Real* a, const Real* b, int64_t states, int64_t) {
    return {Layout::dot(a, b, states)};
  }
  static SUMPROD_INLINE V log(Number x) { return log_nonnegative<Real>(x.f); }

  // Not inlined: what surrounds it (an exponential's constants, above all) would take registers
  // from the accumulators, which then spill in the innermost loop.
  template <int N>
  static SUMPROD_NOINLINE void accumulate(const Real* rows, int64_t row, const Real* in, int64_t states, Real* out) {
    V sum[N];
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) sum[k] = V{};
    for (int64_t i = 0; i < states; ++i, rows += row) {
      const V m = Layout::entry(in, i);
      SUMPROD_UNROLL
      for (int k = 0; k < N; ++k) sum[k] += m * Layout::weight(rows, k);
    }
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) store(out + k * W, sum[k]);
  }

  template <int N, class Use>
  static SUMPROD_INLINE void block(const Real* rows, int64_t row, const Real* in, int64_t states, int64_t v, Use& use) {
    alignas(64) Real sum[N * W];
    accumulate<N>(rows, row, in, states, sum);
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) use(v + k, Number{load(sum + k * W)});
  }

  // use(v, sum_i in[i] * weight[i][v]) for every vector v of the next message.
  template <class Use>
  static SUMPROD_INLINE void propagate(const Weights<Real>& weights, const Real* in, int64_t states, Use use) {
    for_each_block<Layout>(weights, states,
                           [&](auto size, const Real* rows, int64_t row, int64_t v)
                               SUMPROD_INLINE_LAMBDA { block<size.value>(rows, row, in, states, v, use); });
  }
};

// ---- Extended -----------------------------------------------------------------------------

template <class Layout_>
struct Extended {
  using Layout = Layout_;
  using Real = typename Layout::Real;
  using V = Vec<Real>;
  static constexpr bool kExtended = true, kExponentiates = true;
  static constexpr int W = Layout::W;
  static constexpr int kParts = 2;

  struct Number {
    V f, e;  // zero is (0, -inf)
  };
  struct Scale {
    V exponent;
  };

  static SUMPROD_INLINE Number one() { return {splat(Real(1)), V{}}; }
  static SUMPROD_INLINE Number get(const Real* message, int64_t v, int64_t vectors) {
    return {load(message + v * W), load(message + (vectors + v) * W)};
  }
  static SUMPROD_INLINE void put(Real* message, int64_t v, int64_t vectors, Number x) {
    store(message + v * W, x.f);
    store(message + (vectors + v) * W, x.e);
  }
  static SUMPROD_INLINE Number exp(V x) {
    Number y;
    exp_split<Real>(x, y.f, y.e);
    return y;
  }
  static SUMPROD_INLINE Number multiply(Number a, Number b) { return {a.f * b.f, a.e + b.e}; }
  static SUMPROD_INLINE Number select(Int<Real> mask, Number a, Number b) {
    return {mask ? a.f : b.f, mask ? a.e : b.e};
  }
  // Brings the mantissa back to [1, 2).
  static SUMPROD_INLINE Number normalized(V f, V e) {
    const Int<Real> k = exponent_of<Real>(f);
    const V shift = as_real(as_bits(splat(Simd<Real>::kRound)) + k) - Simd<Real>::kRound;
    return {f * pow2_negated<Real>(k), f == Real(0) ? splat(-kInfinity<Real>) : e + shift};
  }

  static SUMPROD_INLINE V peak_start() { return splat(-kInfinity<Real>); }
  static SUMPROD_INLINE V peak(Number x, V so_far) { return max_fast(x.e, so_far); }
  static SUMPROD_INLINE Scale scale_from(V peak) { return {peak == -kInfinity<Real> ? V{} : peak}; }
  static SUMPROD_INLINE Number rescale(Number x, Scale s) { return {x.f, x.e - s.exponent}; }

  template <class Get>
  static SUMPROD_INLINE Number sum_of(int64_t states, int64_t vectors, Get get) {
    V top = peak_start();
    for (int64_t v = 0; v < vectors; ++v) top = peak(get(v), top);
    top = scale_from(Layout::max_over_states(top)).exponent;
    // Entries are added one state at a time, in order, as in linear space.
    V total = {};
    if constexpr (Layout::kMessage > 1) {
      for (int64_t v = 0; v < vectors; ++v) {
        const Number x = get(v);
        total += x.f * pow2_nonpositive<Real>(x.e - top);
      }
    } else {
      Real sum = 0;
      for (int64_t v = 0; v < vectors; ++v) {
        const Number x = get(v);
        const V scale = pow2_nonpositive<Real>(x.e - top);
        for (int l = 0; l < W && v * W + l < states; ++l) sum += x.f[l] * scale[l];
      }
      total = splat(sum);
    }
    return normalized(total, top);
  }
  static SUMPROD_INLINE Number sum(const Real* a, int64_t states, int64_t vectors) {
    return sum_of(states, vectors, [&](int64_t v) SUMPROD_INLINE_LAMBDA { return get(a, v, vectors); });
  }
  static SUMPROD_INLINE Number dot(const Real* a, const Real* b, int64_t states, int64_t vectors) {
    return sum_of(states, vectors,
                  [&](int64_t v) SUMPROD_INLINE_LAMBDA { return multiply(get(a, v, vectors), get(b, v, vectors)); });
  }
  static SUMPROD_INLINE V log(Number x) { return x.e * Real(0.69314718055994530942) + log_nonnegative<Real>(x.f); }

  template <int N, class Use>
  static SUMPROD_INLINE void block(const Real* f, const Real* e, int64_t row, const Real* in, int64_t states,
                                   int64_t vectors, int64_t v, Use& use) {
    const Real* in_e = in + vectors * W;
    V top[N];
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) top[k] = splat(-kInfinity<Real>);
    for (int64_t i = 0; i < states; ++i) {
      const V m = Layout::entry(in_e, i);
      SUMPROD_UNROLL
      for (int k = 0; k < N; ++k) top[k] = max_fast(m + Layout::weight(e + i * row, k), top[k]);
    }
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) top[k] = top[k] == -kInfinity<Real> ? V{} : top[k];
    V sum[N];
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) sum[k] = V{};
    for (int64_t i = 0; i < states; ++i) {
      const V m = Layout::entry(in, i), m_e = Layout::entry(in_e, i);
      SUMPROD_UNROLL
      for (int k = 0; k < N; ++k) {
        const V scale = pow2_nonpositive<Real>((m_e + Layout::weight(e + i * row, k)) - top[k]);
        sum[k] += (m * Layout::weight(f + i * row, k)) * scale;
      }
    }
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) use(v + k, normalized(sum[k], top[k]));
  }

  template <class Use>
  static SUMPROD_INLINE void propagate(const Weights<Real>& weights, const Real* in, int64_t states, Use use) {
    const int64_t vectors = Layout::vectors(states), row = weights.panel * Layout::kWeight;
    for (int64_t first = 0; first < vectors; first += weights.panel) {
      const int64_t last = smaller(first + weights.panel, vectors), panel = first * Layout::kWeight * states;
      int64_t v = first;
      for (; v + 4 <= last; v += 4) {
        const int64_t at = panel + (v - first) * Layout::kWeight;
        block<4>(weights.mantissa + at, weights.exponent + at, row, in, states, vectors, v, use);
      }
      for (; v < last; ++v) {
        const int64_t at = panel + (v - first) * Layout::kWeight;
        block<1>(weights.mantissa + at, weights.exponent + at, row, in, states, vectors, v, use);
      }
    }
  }
};

// ---- MaxPlus ------------------------------------------------------------------------------

// Log potentials as they are; sums of paths become maxima.
template <class Layout_>
struct MaxPlus {
  using Layout = Layout_;
  using Real = typename Layout::Real;
  using V = Vec<Real>;
  static constexpr bool kExtended = false, kExponentiates = false;
  static constexpr int W = Layout::W;
  static constexpr int kParts = 1;

  struct Number {
    V f;
  };
  struct Scale {};
  static SUMPROD_INLINE Number exp(V x) { return {x}; }

  template <int N>
  static SUMPROD_NOINLINE void accumulate(const Real* rows, int64_t row, const Real* in, int64_t states, Real* out) {
    const V one = opaque_one<Real>();
    V best[N];
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) best[k] = splat(-kInfinity<Real>);
    for (int64_t i = 0; i < states; ++i, rows += row) {
      const V m = Layout::entry(in, i);
      SUMPROD_UNROLL
      for (int k = 0; k < N; ++k) best[k] = max_fast(add_beside_max(m, Layout::weight(rows, k), one), best[k]);
    }
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) store(out + k * W, best[k]);
  }

  template <int N, class Use>
  static SUMPROD_INLINE void block(const Real* rows, int64_t row, const Real* in, int64_t states, int64_t v, Use& use) {
    alignas(64) Real best[N * W];
    accumulate<N>(rows, row, in, states, best);
    SUMPROD_UNROLL
    for (int k = 0; k < N; ++k) use(v + k, load(best + k * W));
  }

  // use(v, max_i in[i] + weight[i][v]) for every vector v of the next message.
  template <class Use>
  static SUMPROD_INLINE void propagate(const Weights<Real>& weights, const Real* in, int64_t states, Use use) {
    for_each_block<Layout>(weights, states,
                           [&](auto size, const Real* rows, int64_t row, int64_t v)
                               SUMPROD_INLINE_LAMBDA { block<size.value>(rows, row, in, states, v, use); });
  }
};

// ---- weights ------------------------------------------------------------------------------

// Fills `mantissa` (and `exponent`) with exp(potential - shift). `from` and `to` are strides:
// swapping them prepares the transposed matrix for the backward recursion.
template <class Arithmetic, class External>
Weights<typename Arithmetic::Real> prepare_weights(const External* potential, int64_t from, int64_t to, int64_t states,
                                                   typename Arithmetic::Real* storage) {
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  constexpr int W = Layout::W;
  const Real infinity = kInfinity<Real>;
  Real highest = -infinity, least = infinity;
  bool dense = true, invalid = false;
  for (int64_t i = 0; i < states; ++i) {
    for (int64_t j = 0; j < states; ++j) {
      const Real x = Real(potential[i * from + j * to]);
      dense = dense && x != -infinity;
      invalid = invalid || !(x < infinity);
      if (!(x > -infinity && x < infinity)) continue;
      highest = x > highest ? x : highest;
      least = x < least ? x : least;
    }
  }
  const Real shift = highest == -infinity || !Arithmetic::kExponentiates ? Real(0) : highest;
  const int64_t columns = Layout::vectors(states) * Layout::kWeight;
  const int64_t panel = panel_vectors<Layout>(states) * Layout::kWeight;
  Real* exponent = Arithmetic::kExtended ? storage + weight_size<Layout>(states) : nullptr;
  for (int64_t i = 0; i < states; ++i) {
    for (int64_t j = 0; j < columns; j += W) {
      Real row[W], row_exponent[W];
      for (int l = 0; l < W; ++l) {
        row[l] = j + l < states ? Real(potential[i * from + (j + l) * to]) - shift : -infinity;
      }
      if constexpr (Arithmetic::kExtended) {
        const auto x = Arithmetic::exp(load(row));
        store(row, x.f);
        store(row_exponent, x.e);
      } else {
        store(row, Arithmetic::exp(load(row)).f);
      }
      for (int l = 0; l < W && j + l < columns; ++l) {
        const int64_t at = panel_index(panel, states, i, j + l);
        storage[at] = row[l];
        if constexpr (Arithmetic::kExtended) exponent[at] = row_exponent[l];
      }
    }
  }
  const double lowest = highest == -infinity ? 0.0 : double(least) - double(shift);
  return {storage, exponent, panel_vectors<Layout>(states), double(shift), lowest, dense, invalid};
}

}  // namespace
