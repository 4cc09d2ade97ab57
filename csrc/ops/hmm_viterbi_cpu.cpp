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
    const int64_t steps = group_.lanes.steps, size = vectors_ * W;
    // By the longest sequence there can be: room is asked for once, for the largest group.
    const bool all = group_.problem.steps * size * int64_t(sizeof(Real)) <= kMessageBudget;
    segment_ = all ? larger(steps, 1) : ceil_sqrt(steps);
    messages_ = group_.arena.template take<Real>(segment_ * size);
    checkpoints_ = all ? nullptr : group_.arena.template take<Real>((steps / segment_ + 1) * size);
    scratch_ = group_.arena.template take<Real>(2 * size);
    shifts_ = all ? nullptr : group_.arena.template take<V>(steps / segment_ + 1);
    score_ = group_.arena.template take<double>(group_.lanes.count);
    dead_ = group_.arena.template take<int64_t>(group_.lanes.count);
    invalid_segment_ = group_.arena.template take<bool>(group_.lanes.count);
  }

  int64_t bytes() const { return group_.arena.used(); }

  void run() {
    for (int64_t k = 0; k < group_.lanes.count; ++k) dead_[k] = -1;
    pass_.begin();
    forward();
    const int64_t last = group_.lanes.steps - 1;
    for (int64_t first = last / segment_ * segment_; first >= 0; first -= segment_) {
      const int64_t end = smaller(first + segment_, group_.lanes.steps);
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
    using Pass<Arithmetic, External>::emission;
    void begin() { this->bind(); }
    void move(int64_t t) { this->cursor_.move(t); }
    V initial_peak() const { return this->initial_peak_; }
    V emission_peak() const { return this->emission_peak_; }
  };

  Real* message(int64_t t, int64_t first) { return messages_ + (t - first) * vectors_ * W; }

  // d_t from d_{t-1}, minus `shift` (the previous step's maximum); returns this step's maximum. In
  // lanes where a sequence starts, d_t is the emission.
  SUMPROD_INLINE V step(int64_t t, const Real* previous, V shift, Real* d, Mask& invalid) {
    pass_.move(t);
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
      if (group_.lanes.starts_at(t)) {
        const Mask starts = pass_.cursor().starts();
        bad = starts ? Mask{} : bad;
        peak = splat(-kInfinity<Real>);
        for (int64_t v = 0; v < vectors_; ++v) {
          const V emission = load(e + v * W), x = starts ? emission : load(d + v * W);
          bad |= ~(emission < kInfinity<Real>)&starts;
          store(d + v * W, x);
          peak = max_fast(x, peak);
        }
      }
    }
    invalid = Layout::any_over_states(bad);
    return Layout::max_over_states(peak);
  }

  void forward() {
    const int64_t size = vectors_ * W;
    const Real* previous = nullptr;
    V shift = {};
    Mask dead = {};
    for (int64_t t = 0; t < group_.lanes.steps; ++t) {
      const int64_t first = t / segment_ * segment_;
      Real* d = checkpoints_ == nullptr ? message(t, 0) : scratch_ + (t % 2) * size;
      Mask invalid;
      const V peak = step(t, previous, shift, d, invalid);
      if (group_.lanes.starts_at(t)) dead &= ~start_lanes();
      if (checkpoints_ != nullptr && t == first) {
        for (int64_t k = 0; k < size; ++k) checkpoints_[t / segment_ * size + k] = d[k];
        shifts_[t / segment_] = peak == -kInfinity<Real> ? V{} : peak;
      }
      const Mask now = peak == -kInfinity<Real>;
      const Mask active = pass_.cursor().active();
      invalid_ |= invalid & active;
      if (any(now & ~dead & active)) note_dead(t, now & ~dead & active);
      dead |= now;
      shift = now ? V{} : peak;
      shifts_total_.add(shift);
      if (group_.lanes.starts_at(t)) {
        shifts_total_.add(pass_.initial_peak());
        shifts_total_.add(pass_.emission_peak());
      }
      if (sizeof(Real) == 4) drifted_ |= drifted(t, d, peak) & active;
      if (group_.lanes.ends_at(t)) end_lanes();
      previous = d;
    }
  }

  // Forgets the sequence before in the lanes where another starts.
  Mask start_lanes() {
    const Mask starts = pass_.cursor().starts();
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (starts[l] != 0) shifts_total_.clear(l);
    }
    return starts;
  }

  // Notes the results of the sequences that end here.
  void end_lanes() {
    const Mask ends = pass_.cursor().ends();
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (ends[l] == 0) continue;
      const int64_t k = pass_.cursor().segment(l);
      score_[k] = shifts_total_.lane(l);
      task_.redo[k] = drifted_[l] != 0;
      invalid_segment_[k] = invalid_[l] != 0;
    }
    drifted_ &= ~ends;
    invalid_ &= ~ends;
  }

  // Lanes where some state is so far behind that its rounding could matter. States beyond the
  // usual masks (-1e9 and below) are left out, unless they are all that is left. Looking at every
  // fourth step is enough: states that drift away or catch up take many.
  Mask drifted(int64_t t, const Real* d, V peak) const {
    constexpr Real kFar = -131072, kMask = -1e8;
    Mask far = (peak < kFar) & (peak > -kInfinity<Real>)&~pass_.cursor().starts();
    static_assert(sumprod::kHmmSegmentAlign % 4 == 0);
    if (t % 4 != 3) return far;
    for (int64_t v = 0; v < vectors_; ++v) {
      const V x = load(d + v * W);
      far |= (x < kFar) & (x > kMask);
    }
    return Layout::any_over_states(far);
  }

  void note_dead(int64_t t, Mask mask) {
    for (int l = 0; l < Layout::kLanes; ++l) {
      const int64_t k = pass_.cursor().segment(l);
      if (mask[l] != 0) dead_[k] = t - group_.lanes.start(k);
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
    const bool last = t + 1 == group_.lanes.steps;
    pass_.move(t);
    if constexpr (Layout::kMessage == 1) {
      trace_one(t, d, last);
    } else {
      if (!last) {
        const Weights<Real>& weights = group_.transitions.at(t, false);
        with_columns<Real>(weights.panel, states_, state_, [&](auto at) SUMPROD_INLINE_LAMBDA {
          state_ = argmax([&](int64_t i) SUMPROD_INLINE_LAMBDA { return load(d + i * W) + at(weights.mantissa, i); });
        });
      }
      if (group_.lanes.ends_at(t)) {
        const Mask best = argmax([&](int64_t i) SUMPROD_INLINE_LAMBDA { return load(d + i * W); });
        state_ = pass_.cursor().ends() ? best : state_;
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
    for (int l = 0; l < Layout::kLanes; ++l) {
      const Mask states = as_bits(paths_[l]);
      for (int64_t k = pass_.cursor().segment(l); k < group_.lanes.first(l + 1); ++k) {
        const int64_t start = group_.lanes.start(k), begin = larger(start, t),
                      end = smaller(group_.lanes.end(k), t + W);
        if (start >= t + W) break;
        int64_t* path = out_.path + group_.lanes.sequence(k) * group_.problem.steps - start + t;
        if (end - begin == W) {
          SUMPROD_UNROLL
          for (int i = 0; i < W; ++i) path[i] = states[i];
        } else {
          for (int64_t i = begin - t; i < end - t; ++i) path[i] = states[i];
        }
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
      if (!last) x += load(row + panel_index(panel, states_, 0, v) * W);
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
    out_.path[group_.lanes.sequence(0) * group_.problem.steps + t] = state;
  }

  void finish() {
    for (int64_t k = 0; k < group_.lanes.count; ++k) {
      const int64_t b = group_.lanes.sequence(k);
      const bool invalid = invalid_segment_[k];
      out_.dead[b] = invalid ? -1 : dead_[k];
      double score = score_[k];
      if (dead_[k] >= 0) score = -__builtin_inf();
      if (invalid) score = __builtin_nan("");
      static_cast<External*>(out_.score)[b] = External(score);
      if (!invalid && dead_[k] < 0) continue;
      for (int64_t t = 0; t < group_.lanes.length(k); ++t) out_.path[b * group_.problem.steps + t] = -1;
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
  double* score_;  // per segment, like the next two
  int64_t* dead_;
  bool* invalid_segment_;
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
