// Expected transition counts of one group, summed over its sequences and over time:
//   counts[i][j] = sum_t upstream * a_t[i] A[i][j] e_{t+1}[j] b_{t+1}[j] / total_t
#pragma once

#include "core/hmm_passes.h"

namespace {

// f(j, v, weight of "from register v to state j" in this step), A included, 0 past the end.
template <class Arithmetic, class External, class F>
SUMPROD_INLINE void visit_pairs(const typename BackwardPass<Arithmetic, External>::Step& at, int64_t states, F f) {
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  const int64_t vectors = Layout::vectors(states);
  for (int64_t j = 0; j < states; ++j) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t w = panel_index(at.weights->panel, states, j, v) * Layout::kWeight;
      const V weight = Layout::weight(at.weights->mantissa + w, 0);
      V x;
      if constexpr (Arithmetic::kExtended) {
        const V weight_e = Layout::weight(at.weights->exponent + w, 0);
        const auto a = Arithmetic::get(at.forward, v, vectors);
        const V y = Layout::entry(at.next, j), y_e = Layout::entry(at.next + vectors * Layout::W, j);
        const V top = at.total.e == -kInfinity<Real> ? V{} : at.total.e;
        const V e = ((a.e + weight_e) + (y_e - at.next_scale.exponent)) - top;
        x = (((a.f * weight) * y) / at.total.f) * pow2_nonpositive<Real>(e);
      } else {
        const V y = Layout::entry(at.next, j) * at.next_scale.factor;
        x = (load(at.forward + v * Layout::W) / at.total.f) * weight * y;
      }
      f(j, v, at.continues ? x : V{});
    }
  }
}

// In linear space A is left to the end, and the rest is a product of two matrices, S x K and
// K x S, where K counts the steps of all sequences. Steps are gathered in chunks, laid out for a
// block of registers that holds the sums.
template <class Arithmetic, class External>
class LinearCounts {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Step = typename BackwardPass<Arithmetic, External>::Step;
  static constexpr int W = Layout::W;

  LinearCounts(Arena& arena, int64_t states) : states_(states), blocks_((states + W - 1) / W) {
    counts_ = arena.take<double>(blocks_ * W * blocks_ * W);
    from_ = arena.take<Real>(kChunk * blocks_ * W);
    to_ = arena.take<Real>(kChunk * blocks_ * W);
  }

  void clear() {
    for (int64_t k = 0; k < blocks_ * W * blocks_ * W; ++k) counts_[k] = 0.0;
    filled_ = 0;
  }

  // Adds one step of the sequences in the lanes `counted`.
  void add(const Step& at, Int<Real> counted, V upstream) {
    counted &= at.continues;
    if (filled_ + Layout::kLanes > kChunk) flush();
    const V factor = upstream / at.total.f;
    for (int64_t block = 0; block < blocks_; ++block) {
      put(from_, block, counted, at.forward, factor);
      put(to_, block, counted, at.next, at.next_scale.factor);
    }
    for (int l = 0; l < Layout::kLanes; ++l) filled_ += counted[l] != 0 ? 1 : 0;
  }

  void flush() {
    for (int64_t column = 0; column < blocks_; column += kColumns) {
      for (int64_t row = 0; row < states_; row += kRows) {
        if (column + kColumns <= blocks_) {
          product<kColumns>(row, column);
        } else {
          product<1>(row, column);
        }
      }
    }
    filled_ = 0;
  }

  // add(i, j, count) for every pair of states; `weights` are those of the forward recursion.
  template <class Add>
  void collect(const Weights<Real>& weights, Add add) const {
    const int64_t panel = weights.panel * Layout::kWeight;
    for (int64_t i = 0; i < states_; ++i) {
      const double* row = counts_ + i * blocks_ * W;
      for (int64_t first = 0; first < states_; first += panel) {
        const Real* weight = weights.mantissa + first * states_ + i * panel;
        const int64_t size = smaller(panel, states_ - first);
        for (int64_t n = 0; n < size; ++n) add(i, first + n, row[first + n] * double(weight[n]));
      }
    }
  }

 private:
  // Sums held in registers.
  static constexpr int kRows = kBlock / 2 < W ? kBlock / 2 : W, kColumns = 2;
  // Long enough that the sums rarely leave the registers, short enough for single precision.
  static constexpr int64_t kChunk = 256;
  static_assert(W % kRows == 0);

  // W states of a message, times `factor`, as one register per counted sequence.
  SUMPROD_INLINE void put(Real* chunk, int64_t block, Int<Real> counted, const Real* message, V factor) {
    Real* target = chunk + (block * kChunk + filled_) * W;
    if constexpr (Layout::kLanes == 1) {
      if (counted[0] != 0) store(target, load(message + block * W) * factor);
    } else {
      V square[W];
      const int64_t left = states_ - block * W;
      if (left >= W) {
        SUMPROD_UNROLL
        for (int i = 0; i < W; ++i) square[i] = load(message + (block * W + i) * W) * factor;
      } else {
        for (int i = 0; i < W; ++i) square[i] = i < left ? load(message + (block * W + i) * W) * factor : V{};
      }
      transpose<Real>(square);
      for (int l = 0; l < W; ++l) {
        store(target, square[l]);  // the next one overwrites it, unless counted
        target += counted[l] != 0 ? W : 0;
      }
    }
  }

  template <int N>
  SUMPROD_NOINLINE void product(int64_t row, int64_t column) {
    const Real* from = from_ + row / W * kChunk * W + row % W;
    const Real* to = to_ + column * kChunk * W;
    V sum[kRows][N];
    SUMPROD_UNROLL
    for (int a = 0; a < kRows; ++a) {
      SUMPROD_UNROLL
      for (int b = 0; b < N; ++b) sum[a][b] = V{};
    }
    for (int64_t k = 0; k < filled_; ++k, from += W, to += W) {
      SUMPROD_UNROLL
      for (int a = 0; a < kRows; ++a) {
        const V x = splat(from[a]);
        SUMPROD_UNROLL
        for (int b = 0; b < N; ++b) sum[a][b] += x * load(to + b * kChunk * W);
      }
    }
    SUMPROD_UNROLL
    for (int a = 0; a < kRows; ++a) {
      SUMPROD_UNROLL
      for (int b = 0; b < N; ++b) {
        double* count = counts_ + (row + a) * blocks_ * W + (column + b) * W;
        Real part[W];
        store(part, sum[a][b]);
        for (int l = 0; l < W; ++l) count[l] += double(part[l]);
      }
    }
  }

  const int64_t states_, blocks_;
  int64_t filled_ = 0;
  double* counts_;
  Real *from_, *to_;  // [block of W states][step][state]
};

// Numbers with exponents are added up pair by pair, one sum per lane.
template <class Arithmetic, class External>
class ExtendedCounts {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Step = typename BackwardPass<Arithmetic, External>::Step;
  static constexpr int W = Layout::W;

  ExtendedCounts(Arena& arena, int64_t states) : states_(states), vectors_(Layout::vectors(states)) {
    counts_ = arena.take<Real>(states * vectors_ * W);
  }

  void clear() {
    for (int64_t k = 0; k < states_ * vectors_ * W; ++k) counts_[k] = 0;
  }

  void add(const Step& at, Int<Real> counted, V upstream) {
    visit_pairs<Arithmetic, External>(at, states_, [&](int64_t j, int64_t v, V x) SUMPROD_INLINE_LAMBDA {
      Real* count = counts_ + (j * vectors_ + v) * W;
      store(count, load(count) + (counted ? x * upstream : V{}));
    });
  }

  void flush() {}

  template <class Add>
  void collect(const Weights<Real>&, Add add) const {
    for (int64_t i = 0; i < states_; ++i) {
      for (int64_t j = 0; j < states_; ++j) {
        if constexpr (Layout::kMessage == 1) {
          add(i, j, double(counts_[j * vectors_ * W + i]));
        } else {
          const Real* lanes = counts_ + (j * vectors_ + i) * W;
          double total = 0.0;
          for (int l = 0; l < W; ++l) total += double(lanes[l]);
          add(i, j, total);
        }
      }
    }
  }

 private:
  const int64_t states_, vectors_;
  Real* counts_;
};

template <class Arithmetic, class External, bool extended>
struct CountsFor {
  using Type = LinearCounts<Arithmetic, External>;
};
template <class Arithmetic, class External>
struct CountsFor<Arithmetic, External, true> {
  using Type = ExtendedCounts<Arithmetic, External>;
};
template <class Arithmetic, class External>
using TransitionCounts = typename CountsFor<Arithmetic, External, Arithmetic::kExtended>::Type;

}  // namespace
