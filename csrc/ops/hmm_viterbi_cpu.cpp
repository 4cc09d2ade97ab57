#include "ops/hmm_viterbi.h"

#include "core/hmm_dispatch.h"

namespace {

using sumprod::HmmViterbiOutputs;

constexpr int64_t kMessageBudget = int64_t(32) << 20;

constexpr int64_t ceil_sqrt(int64_t n) {
  int64_t r = 1;
  while (r * r < n) ++r;
  return r;
}

template <class Arithmetic, class External>
class ViterbiTask {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Mask = Int<Real>;
  static constexpr int W = Layout::W;

  explicit ViterbiTask(const HmmTask& task)
      : task_(task),
        out_(*static_cast<const HmmViterbiOutputs*>(task.outputs)),
        group_(task),
        pass_(group_.arena, group_.problem, group_.lanes, group_.transitions),
        states_(group_.problem.states),
        vectors_(Layout::vectors(states_)) {
    const int64_t steps = group_.lanes.longest, size = vectors_ * W;
    const bool all = steps * size * int64_t(sizeof(Real)) <= kMessageBudget;
    segment_ = all ? larger(steps, 1) : ceil_sqrt(steps);
    messages_ = group_.arena.template take<Real>(segment_ * size);
    checkpoints_ = all ? nullptr : group_.arena.template take<Real>((steps / segment_ + 1) * size);
    scratch_ = group_.arena.template take<Real>(2 * size);
    shifts_ = all ? nullptr : group_.arena.template take<V>(steps / segment_ + 1);
  }

  int64_t bytes() const { return group_.arena.used(); }

  void run() {
    for (int64_t& t : dead_) t = -1;
    pass_.begin();
    forward();
    const int64_t last = group_.lanes.longest - 1;
    for (int64_t first = last / segment_ * segment_; first >= 0; first -= segment_) {
      const int64_t end = smaller(first + segment_, group_.lanes.longest);
      if (segment_ <= last) recompute(first, end);
      for (int64_t t = end - 1; t >= first; --t) trace(t, message(t, first));
    }
    finish();
  }

 private:
  // Emissions with the initial potential, shared with the sum-product passes.
  class Emissions : public Pass<Arithmetic, External> {
   public:
    using Pass<Arithmetic, External>::Pass;
    using Pass<Arithmetic, External>::active;
    using Pass<Arithmetic, External>::emission;
    void begin() { this->bind(); }
    V initial_peak() const { return this->initial_peak_; }
    V emission_peak() const { return this->emission_peak_; }
  };

  Real* message(int64_t t, int64_t first) { return messages_ + (t - first) * vectors_ * W; }

  // d_t from d_{t-1}, minus `shift` (the previous step's maximum); returns this step's maximum.
  SUMPROD_INLINE V step(int64_t t, const Real* previous, V shift, Real* d, Mask& invalid) {
    const Real* e = pass_.emission(t);
    V peak = splat(-kInfinity<Real>);
    Mask bad = {};
    const auto use = [&](int64_t v, V best) SUMPROD_INLINE_LAMBDA {
      const V emission = load(e + v * W);
      const V x = best + (emission - shift);
      bad |= ~(emission < kInfinity<Real>);  // NaN or +inf; at t = 0 +inf has become NaN
      store(d + v * W, x);
      peak = max_fast(x, peak);
    };
    if (t == 0) {
      for (int64_t v = 0; v < vectors_; ++v) use(v, V{});
    } else {
      const auto& weights = group_.transitions.at(t - 1, false);
      if (weights.invalid) bad = ~Mask{};
      Arithmetic::propagate(weights, previous, states_, use);
    }
    invalid = Layout::any_over_states(bad);
    return Layout::max_over_states(peak);
  }

  void forward() {
    const int64_t size = vectors_ * W;
    const Real* previous = nullptr;
    V shift = {};
    Mask dead = {};
    for (int64_t t = 0; t < group_.lanes.longest; ++t) {
      const int64_t first = t / segment_ * segment_;
      Real* d = checkpoints_ == nullptr ? message(t, 0) : scratch_ + (t % 2) * size;
      Mask invalid;
      const V peak = step(t, previous, shift, d, invalid);
      if (checkpoints_ != nullptr && t == first) {
        for (int64_t k = 0; k < size; ++k) checkpoints_[t / segment_ * size + k] = d[k];
        shifts_[t / segment_] = peak == -kInfinity<Real> ? V{} : peak;
      }
      const Mask now = peak == -kInfinity<Real>;
      const Mask active = pass_.active(t);
      invalid_ |= invalid & active;
      if (any(now & ~dead & active)) note_dead(t, now & ~dead & active);
      dead |= now;
      shift = now ? V{} : peak;
      shifts_total_.add(shift);
      if (t == 0) {
        shifts_total_.add(pass_.initial_peak());
        shifts_total_.add(pass_.emission_peak());
      }
      if (sizeof(Real) == 4) drifted_ |= drifted(t, d, peak) & active;
      if (t + 1 >= group_.lanes.shortest) note_scores(t);
      previous = d;
    }
  }

  // Lanes where some state is so far behind that its rounding could matter. States beyond the
  // usual masks (-1e9 and below) are left out, unless they are all that is left. Looking at every
  // fourth step is enough: states that drift away or catch up take many.
  Mask drifted(int64_t t, const Real* d, V peak) const {
    constexpr Real kFar = -131072, kMask = -1e8;
    Mask far = (peak < kFar) & (peak > -kInfinity<Real>)&(t > 0 ? ~Mask{} : Mask{});
    if (t % 4 != 3) return far;
    for (int64_t v = 0; v < vectors_; ++v) {
      const V x = load(d + v * W);
      far |= (x < kFar) & (x > kMask);
    }
    return Layout::any_over_states(far);
  }

  void note_dead(int64_t t, Mask mask) {
    for (int l = 0; l < group_.lanes.count; ++l) {
      if (mask[l] != 0) dead_[l] = t;
    }
  }
  void note_scores(int64_t t) {
    for (int l = 0; l < group_.lanes.count; ++l) {
      if (group_.lanes.length[l] == t + 1) score_[l] = shifts_total_.lane(l);
    }
  }

  // Messages first .. end-1 again, from the checkpoint at `first`.
  void recompute(int64_t first, int64_t end) {
    const int64_t size = vectors_ * W, k = first / segment_;
    for (int64_t n = 0; n < size; ++n) messages_[n] = checkpoints_[k * size + n];
    V shift = shifts_[k];
    for (int64_t t = first + 1; t < end; ++t) {
      Mask invalid;
      const V peak = step(t, message(t - 1, first), shift, message(t, first), invalid);
      shift = peak == -kInfinity<Real> ? V{} : peak;
    }
  }

  // The state of step t: argmax over i of d_t[i] + A[i][state at t + 1], lowest index first.
  SUMPROD_INLINE void trace(int64_t t, const Real* d) {
    const bool last = t + 1 == group_.lanes.longest;
    if constexpr (Layout::kMessage == 1) {
      trace_one(t, d, last);
    } else {
      if (last) {
        state_ = argmax([&](int64_t i) SUMPROD_INLINE_LAMBDA { return load(d + i * W); });
      } else {
        const Weights<Real>& weights = group_.transitions.at(t, false);
        const Mask continues = pass_.active(t + 1);
        with_columns<Real>(weights.panel, states_, state_, [&](auto at) SUMPROD_INLINE_LAMBDA {
          state_ = argmax([&](int64_t i) SUMPROD_INLINE_LAMBDA {
            const V x = load(d + i * W);
            return continues ? x + at(weights.mantissa, i) : x;
          });
        });
      }
      record(t);
    }
  }

  // The first i in [0, S) with the largest value(i), per lane. Four chains side by side, because
  // one would spend its time waiting for its own comparisons.
  template <class Value>
  SUMPROD_INLINE Mask argmax(Value value) const {
    using Bits = typename Simd<Real>::Bits;
    constexpr int kChains = 4;
    const int64_t part = states_ / kChains;
    V best[kChains];
    Mask index[kChains];
    SUMPROD_UNROLL
    for (int c = 0; c < kChains; ++c) {
      best[c] = splat(-kInfinity<Real>);
      index[c] = Mask{};
    }
    for (int64_t k = 0; k < part; ++k) {
      SUMPROD_UNROLL
      for (int c = 0; c < kChains; ++c) {
        const V x = value(c * part + k);
        const Mask better = x > best[c];
        best[c] = better ? x : best[c];
        index[c] = better ? Mask{} + Bits(c * part + k) : index[c];
      }
    }
    SUMPROD_UNROLL
    for (int c = 1; c < kChains; ++c) {
      const Mask better = best[c] > best[0];
      best[0] = better ? best[c] : best[0];
      index[0] = better ? index[c] : index[0];
    }
    for (int64_t i = kChains * part; i < states_; ++i) {
      const V x = value(i);
      const Mask better = x > best[0];
      best[0] = better ? x : best[0];
      index[0] = better ? Mask{} + Bits(i) : index[0];
    }
    return index[0];
  }

  // Paths leave in blocks of W steps: one store of consecutive steps per lane.
  void record(int64_t t) {
    paths_[t % W] = as_real(state_);
    if (t % W != 0) return;
    transpose<Real>(paths_);
    for (int l = 0; l < group_.lanes.count; ++l) {
      int64_t* path = out_.path + group_.lanes.sequence[l] * group_.problem.steps + t;
      const Mask states = as_bits(paths_[l]);
      const int64_t left = smaller(group_.lanes.length[l] - t, W);
      if (left == W) {
        SUMPROD_UNROLL
        for (int k = 0; k < W; ++k) path[k] = states[k];
      } else {
        for (int64_t k = 0; k < left; ++k) path[k] = states[k];
      }
    }
  }

  void trace_one(int64_t t, const Real* d, bool last) {
    const Real* row = nullptr;
    int64_t panel = 0;
    if (!last) {
      const auto& weights = group_.transitions.at(t, true);
      panel = weights.panel;
      row = weights.mantissa + state_[0] * panel * W;
    }
    V best = splat(-kInfinity<Real>);
    Mask from = {};
    for (int64_t v = 0; v < vectors_; ++v) {
      V x = load(d + v * W);
      if (!last) x += load(row + (v / panel * panel * states_ + v % panel) * W);
      const Mask better = x > best;
      best = better ? x : best;
      from = better ? Mask{} + typename Simd<Real>::Bits(v) : from;
    }
    int64_t state = 0;
    Real top = -kInfinity<Real>;
    for (int l = 0; l < W; ++l) {
      const int64_t candidate = from[l] * W + l;
      if (best[l] > top || (best[l] == top && candidate < state)) {
        top = best[l];
        state = candidate;
      }
    }
    state_[0] = typename Simd<Real>::Bits(state);
    out_.path[group_.lanes.sequence[0] * group_.problem.steps + t] = state;
  }

  void finish() {
    for (int l = 0; l < group_.lanes.count; ++l) {
      const int64_t b = group_.lanes.sequence[l];
      task_.redo[l] = drifted_[l] != 0;
      const bool invalid = invalid_[l] != 0;
      out_.dead[b] = invalid ? -1 : dead_[l];
      double score = score_[l];
      if (dead_[l] >= 0) score = -__builtin_inf();
      if (invalid) score = __builtin_nan("");
      static_cast<External*>(out_.score)[b] = External(score);
      if (!invalid && dead_[l] < 0) continue;
      for (int64_t t = 0; t < group_.lanes.length[l]; ++t) out_.path[b * group_.problem.steps + t] = -1;
    }
  }

  const HmmTask& task_;
  const HmmViterbiOutputs& out_;
  Group<Arithmetic, External> group_;
  Emissions pass_;
  const int64_t states_, vectors_;
  int64_t segment_;
  Real *messages_, *checkpoints_, *scratch_;
  V* shifts_;
  Mask state_ = {}, invalid_ = {}, drifted_ = {};
  V paths_[W] = {};
  DoubleSum<Real> shifts_total_;
  double score_[Layout::kLanes] = {};
  int64_t dead_[Layout::kLanes] = {};
};

}  // namespace

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_viterbi_group(const HmmTask& task) {
  return dispatch_max_plus(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    ViterbiTask<Arithmetic, External> viterbi(task);
    if (task.workspace != nullptr) viterbi.run();
    return viterbi.bytes();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
