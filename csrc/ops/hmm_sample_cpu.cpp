#include "ops/hmm_sample.h"

#include "core/hmm_dispatch.h"

namespace {

using sumprod::HmmSampleOutputs;

template <class Arithmetic, class External>
class SampleTask {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  static constexpr int W = Layout::W;

  explicit SampleTask(const HmmTask& task)
      : task_(task),
        out_(*static_cast<const HmmSampleOutputs*>(task.outputs)),
        group_(task),
        forward_(group_.arena, group_.problem, group_.lanes, group_.transitions),
        states_(group_.problem.states),
        vectors_(Layout::vectors(states_)) {
    messages_ = group_.arena.template take<Real>(group_.lanes.longest * forward_.message_size());
    weights_ = group_.arena.template take<Real>(vectors_ * W);
    exponents_ = group_.arena.template take<Real>(Arithmetic::kExtended ? vectors_ * W : 0);
    next_ = group_.arena.template take<int64_t>(out_.draws * Layout::kLanes);
  }

  int64_t bytes() const { return group_.arena.used(); }

  void run() {
    const bool usable = forward_.run(Keep::forward, messages_, [](auto&&...) SUMPROD_INLINE_LAMBDA {});
    bool any_path = false;
    for (int l = 0; l < group_.lanes.count; ++l) {
      task_.redo[l] = forward_.redo(l);
      if (task_.redo[l]) continue;
      out_.dead[group_.lanes.sequence[l]] =
          forward_.possible(l) || forward_.log_normalizer(l) != -__builtin_inf() ? -1 : first_dead(l);
      any_path = any_path || forward_.possible(l);
    }
    if (!usable || !any_path) return;
    for (int64_t t = group_.lanes.longest - 1; t >= 0; --t) {
      for (int64_t n = 0; n < out_.draws; ++n) draw(t, n);
    }
  }

 private:
  const Real* message(int64_t t) const { return messages_ + t * forward_.message_size(); }

  int64_t first_dead(int l) const {
    for (int64_t t = 0; t < group_.lanes.length[l]; ++t) {
      bool alive = false;
      for (int64_t s = 0; s < states_ && !alive; ++s) alive = Layout::at(message(t), s, l) != Real(0);
      if (!alive) return t;
    }
    return -1;
  }

  // One step of draw n for every lane of the group.
  void draw(int64_t t, int64_t n) {
    const sumprod::HmmProblem& problem = group_.problem;
    int64_t* state = next_ + n * Layout::kLanes;
    Int<Real> next = {};
    V uniform = {};
    for (int l = 0; l < group_.lanes.count; ++l) {
      next[l] = typename Simd<Real>::Bits(state[l]);
      if (t >= group_.lanes.length[l]) continue;
      const int64_t at = (n * problem.batch + group_.lanes.sequence[l]) * problem.steps + t;
      uniform[l] = Real(static_cast<const External*>(out_.uniforms)[at]);
    }
    combine(t, next);
    pick(uniform, state);
    for (int l = 0; l < group_.lanes.count; ++l) {
      if (t >= group_.lanes.length[l] || task_.redo[l] || !forward_.possible(l)) continue;
      out_.paths[(n * problem.batch + group_.lanes.sequence[l]) * problem.steps + t] = state[l];
    }
  }

  // weights_ = a_t[i] * A[i][next] where the sequence goes on, a_t[i] at its end, on a common
  // scale per lane.
  void combine(int64_t t, Int<Real> next) {
    const bool last = t + 1 >= group_.lanes.longest;
    const Weights<Real>* weights = last ? nullptr : &group_.transitions.at(t, Layout::kMessage == 1);
    const Int<Real> continues = last ? Int<Real>{} : continuing(t);
    const Real* a = message(t);
    V top = splat(-kInfinity<Real>);
    const auto put = [&](int64_t v, typename Arithmetic::Number x) SUMPROD_INLINE_LAMBDA {
      store(weights_ + v * W, x.f);
      if constexpr (Arithmetic::kExtended) {
        store(exponents_ + v * W, x.e);
        top = max_fast(x.e, top);
      }
    };
    const auto multiply = [&](int64_t v, typename Arithmetic::Number weight) SUMPROD_INLINE_LAMBDA {
      const auto x = Arithmetic::get(a, v, vectors_);
      put(v, Arithmetic::select(continues, Arithmetic::multiply(x, weight), x));
    };
    if (last) {
      for (int64_t v = 0; v < vectors_; ++v) put(v, Arithmetic::get(a, v, vectors_));
    } else if constexpr (Layout::kMessage == 1) {
      for (int64_t v = 0; v < vectors_; ++v) multiply(v, row_weight(*weights, v, next[0]));
    } else {
      with_columns<Real>(weights->panel, states_, next, [&](auto at) SUMPROD_INLINE_LAMBDA {
        for (int64_t i = 0; i < states_; ++i) {
          auto weight = Arithmetic::one();
          weight.f = at(weights->mantissa, i);
          if constexpr (Arithmetic::kExtended) weight.e = at(weights->exponent, i);
          multiply(i, weight);
        }
      });
    }
    if constexpr (Arithmetic::kExtended) {
      top = Layout::max_over_states(top);
      top = top == -kInfinity<Real> ? V{} : top;
      for (int64_t v = 0; v < vectors_; ++v) {
        const V scale = pow2_nonpositive<Real>(load(exponents_ + v * W) - top);
        store(weights_ + v * W, load(weights_ + v * W) * scale);
      }
    }
  }

  Int<Real> continuing(int64_t t) const {
    Int<Real> mask = {};
    for (int l = 0; l < W; ++l) mask[l] = t + 1 < group_.lanes.length[l < Layout::kLanes ? l : 0] ? -1 : 0;
    return mask;
  }

  // Register v of A[.][next], from the transposed matrix.
  SUMPROD_INLINE typename Arithmetic::Number row_weight(const Weights<Real>& weights, int64_t v, int64_t next) const {
    const int64_t panel = weights.panel;
    const int64_t at = (v / panel * panel * states_ + next * panel + v % panel) * W;
    typename Arithmetic::Number x = Arithmetic::one();
    x.f = load(weights.mantissa + at);
    if constexpr (Arithmetic::kExtended) x.e = load(weights.exponent + at);
    return x;
  }

  // First state whose cumulative weight exceeds uniform * total, per lane.
  void pick(V uniform, int64_t* next) const {
    const V threshold = Layout::sum(weights_, states_) * uniform;
    if constexpr (Layout::kMessage == 1) {
      Real cumulative = 0;
      int64_t state = 0;
      while (state < states_ - 1) {
        cumulative += weights_[state];
        if (cumulative > threshold[0]) break;
        ++state;
      }
      next[0] = state;
    } else {
      V cumulative = {};
      Int<Real> state = {};
      for (int64_t i = 0; i < states_ - 1; ++i) {
        cumulative += load(weights_ + i * W);
        state -= ~(cumulative > threshold);  // +1 while not exceeded (a comparison gives -1)
      }
      for (int l = 0; l < W; ++l) next[l] = state[l];
    }
  }

  const HmmTask& task_;
  const HmmSampleOutputs& out_;
  Group<Arithmetic, External> group_;
  ForwardPass<Arithmetic, External> forward_;
  const int64_t states_, vectors_;
  Real *messages_, *weights_, *exponents_;
  int64_t* next_;
};

}  // namespace

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_sample_group(const HmmTask& task) {
  return dispatch_hmm(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    SampleTask<Arithmetic, External> sample(task);
    if (task.workspace != nullptr) {
      const FlushDenormals flush;
      sample.run();
    }
    return sample.bytes();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
