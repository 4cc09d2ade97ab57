// Expected transition counts of one group, summed over time:
//   counts[j][i] = sum_t a_t[i] A[i][j] e_{t+1}[j] b_{t+1}[j] / total_t
// one number per lane, so that a lane whose sequence must be redone can still be left out at the
// end. Linear space leaves A to the reader and gathers steps in chunks: the sum over a chunk is a
// matrix product, done a block of registers at a time over data laid out for it.
#pragma once

#include "core/hmm_passes.h"

namespace {

template <class Arithmetic, class External>
class TransitionCounts {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Step = typename BackwardPass<Arithmetic, External>::Step;
  static constexpr int W = Layout::W;
  // A block of accumulators; more rows than columns, because rows stay in the first-level cache.
  static constexpr int kRows = kBlock / 2, kColumns = 2;
  static constexpr int64_t kChunk = 64;

  TransitionCounts(Arena& arena, int64_t states)
      : states_(states),
        vectors_(Layout::vectors(states)),
        rows_(round_up(states, kRows)),
        columns_(round_up(vectors_, kColumns)) {
    counts_ = arena.take<Real>(rows_ * columns_ * W);
    if (Arithmetic::kExtended) return;
    to_ = arena.take<Real>(kChunk * rows_ * Layout::kMessage);
    from_ = arena.take<Real>(kChunk * columns_ * W);
  }

  void clear() {
    for (int64_t k = 0; k < rows_ * columns_ * W; ++k) counts_[k] = 0;
    filled_ = 0;
    if (Arithmetic::kExtended) return;
    for (int64_t k = 0; k < kChunk * rows_ * Layout::kMessage; ++k) to_[k] = 0;
    for (int64_t k = 0; k < kChunk * columns_ * W; ++k) from_[k] = 0;
  }

  void add(const Step& at) {
    if constexpr (Arithmetic::kExtended) {
      visit_pairs(at, [&](int64_t j, int64_t v, V x) SUMPROD_INLINE_LAMBDA {
        Real* count = counts_ + (j * columns_ + v) * W;
        store(count, load(count) + x);
      });
    } else {
      push(at);
      if (++filled_ == kChunk) flush();
    }
  }

  // f(j, v, weight of "from register v to state j" in this step), A included, 0 past the end.
  template <class F>
  static void visit_pairs(const Step& at, int64_t states, F f) {
    const int64_t vectors = Layout::vectors(states), panel = at.weights->panel;
    for (int64_t j = 0; j < states; ++j) {
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t w = (v / panel * panel * states + j * panel + v % panel) * Layout::kWeight;
        V x;
        if constexpr (Arithmetic::kExtended) {
          const V weight = Layout::weight(at.weights->mantissa + w, 0),
                  weight_e = Layout::weight(at.weights->exponent + w, 0);
          const auto a = Arithmetic::get(at.forward, v, vectors);
          const V y = Layout::entry(at.next, j), y_e = Layout::entry(at.next + vectors * W, j);
          const V top = at.total.e == -kInfinity<Real> ? V{} : at.total.e;
          const V e = ((a.e + weight_e) + (y_e - at.next_scale.exponent)) - top;
          x = (((a.f * weight) * y) / at.total.f) * pow2_nonpositive<Real>(e);
        } else {
          const V weight = Layout::weight(at.weights->mantissa + w, 0);
          const V y = Layout::entry(at.next, j) * at.next_scale.factor;
          x = (load(at.forward + v * W) / at.total.f) * weight * y;
        }
        f(j, v, at.continues ? x : V{});
      }
    }
  }
  template <class F>
  void visit_pairs(const Step& at, F f) {
    visit_pairs(at, states_, f);
  }

  void flush() {
    if (Arithmetic::kExtended || filled_ == 0) return;
    for (int64_t j = 0; j < rows_; j += kRows) {
      for (int64_t v = 0; v < columns_; v += kColumns) product(j, v);
    }
    filled_ = 0;
  }

  // The counts of "to state j", from register v, still without A in linear space.
  V count(int64_t j, int64_t v) const { return load(counts_ + (j * columns_ + v) * W); }

 private:
  void push(const Step& at) {
    const V inverse = Real(1) / at.total.f;
    for (int64_t v = 0; v < vectors_; ++v) {
      const V x = at.continues ? load(at.forward + v * W) * inverse : V{};
      store(from_ + ((v / kColumns * kChunk + filled_) * kColumns + v % kColumns) * W, x);
    }
    constexpr int64_t n = Layout::kMessage;
    for (int64_t j = 0; j < states_; ++j) {
      Real* to = to_ + ((j / kRows * kChunk + filled_) * kRows + j % kRows) * n;
      const V y = Layout::entry(at.next, j) * at.next_scale.factor;
      if constexpr (n == 1) {
        *to = at.continues[0] ? y[0] : Real(0);
      } else {
        store(to, at.continues ? y : V{});
      }
    }
  }

  SUMPROD_NOINLINE void product(int64_t j, int64_t v) {
    const Real* to = to_ + j * kChunk * Layout::kMessage;
    const Real* from = from_ + v * kChunk * W;
    V sum[kRows][kColumns];
    SUMPROD_UNROLL
    for (int a = 0; a < kRows; ++a) {
      SUMPROD_UNROLL
      for (int b = 0; b < kColumns; ++b) sum[a][b] = V{};
    }
    for (int64_t k = 0; k < filled_; ++k, to += kRows * Layout::kMessage, from += kColumns * W) {
      SUMPROD_UNROLL
      for (int a = 0; a < kRows; ++a) {
        const V y = Layout::entry(to, a);
        SUMPROD_UNROLL
        for (int b = 0; b < kColumns; ++b) sum[a][b] += y * load(from + b * W);
      }
    }
    SUMPROD_UNROLL
    for (int a = 0; a < kRows; ++a) {
      SUMPROD_UNROLL
      for (int b = 0; b < kColumns; ++b) {
        Real* count = counts_ + ((j + a) * columns_ + v + b) * W;
        store(count, load(count) + sum[a][b]);
      }
    }
  }

  const int64_t states_, vectors_, rows_, columns_;
  int64_t filled_ = 0;
  Real *counts_, *to_ = nullptr, *from_ = nullptr;
};

}  // namespace
