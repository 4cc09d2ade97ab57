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
        cursor_(group_.lanes),
        states_(group_.problem.states),
        vectors_(Layout::vectors(states_)),
        plane_(group_.problem.batch * group_.problem.steps) {
    messages_ = group_.arena.template take<Real>(group_.lanes.steps * forward_.message_size());
    weights_ = group_.arena.template take<Real>(vectors_ * W);
    exponents_ = group_.arena.template take<Real>(Arithmetic::kExtended ? vectors_ * W : 0);
    next_ = group_.arena.template take<int64_t>(out_.draws * Layout::kLanes);
  }

  int64_t bytes() const { return group_.arena.used(); }

  void run() {
    const bool usable = forward_.run(Keep::forward, messages_, [](auto&&...) SUMPROD_INLINE_LAMBDA {});
    bool any_path = false;
    for (int64_t k = 0; k < group_.lanes.count; ++k) {
      task_.redo[k] = forward_.redo(k);
      if (task_.redo[k]) continue;
      out_.dead[group_.lanes.sequence(k)] =
          forward_.possible(k) || forward_.log_normalizer(k) != -__builtin_inf() ? -1 : first_dead(k);
      any_path = any_path || forward_.possible(k);
    }
    if (!usable || !any_path) return;
    for (int64_t t = group_.lanes.steps - 1; t >= 0; --t) {
      cursor_.move(t);
      if (group_.lanes.ends_at(t)) enter_segments();
      for (int64_t n = 0; n < out_.draws; ++n) draw(t, n);
    }
  }

 private:
  const Real* message(int64_t t) const { return messages_ + t * forward_.message_size(); }

  int64_t first_dead(int64_t k) const {
    for (int64_t t = 0; t < group_.lanes.length(k); ++t) {
      const Real* a = message(group_.lanes.start(k) + t);
      bool alive = false;
      for (int64_t s = 0; s < states_ && !alive; ++s) alive = Layout::at(a, s, group_.lanes.lane(k)) != Real(0);
      if (!alive) return t;
    }
    return -1;
  }

  // Goes on with the sequences that the lanes are in now.
  void enter_segments() {
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (group_.lanes.first(l) == group_.lanes.first(l + 1)) continue;
      const int64_t k = cursor_.segment(l);
      offset_[l] = group_.lanes.sequence(k) * group_.problem.steps - group_.lanes.start(k);
      wanted_[l] = !task_.redo[k] && forward_.possible(k);
    }
  }

  // One step of draw n for every lane of the group.
  void draw(int64_t t, int64_t n) {
    const External* uniforms = static_cast<const External*>(out_.uniforms) + n * plane_ + t;
    int64_t* paths = out_.paths + n * plane_ + t;
    const Int<Real> active = cursor_.active();
    int64_t* state = next_ + n * Layout::kLanes;
    Int<Real> next = {};
    V uniform = {};
    for (int l = 0; l < Layout::kLanes; ++l) {
      next[l] = typename Simd<Real>::Bits(state[l]);
      if (active[l] != 0) uniform[l] = Real(uniforms[offset_[l]]);
    }
    combine(t, next);
    pick(uniform, state);
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (active[l] != 0 && wanted_[l]) paths[offset_[l]] = state[l];
    }
  }

  // weights_ = a_t[i] * A[i][next] where the sequence goes on, a_t[i] at its end, on a common
  // scale per lane.
  void combine(int64_t t, Int<Real> next) {
    const bool last = t + 1 >= group_.lanes.steps;
    const Weights<Real>* weights = last ? nullptr : &group_.transitions.at(t, Layout::kMessage == 1);
    const Int<Real> continues = cursor_.continues();
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

  // Register v of A[.][next], from the transposed matrix.
  SUMPROD_INLINE typename Arithmetic::Number row_weight(const Weights<Real>& weights, int64_t v, int64_t next) const {
    const int64_t at = panel_index(weights.panel, states_, next, v) * W;
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
  Cursor<Layout> cursor_;
  const int64_t states_, vectors_, plane_;
  int64_t offset_[Layout::kLanes] = {};  // of the lanes' sequences in [batch, steps], at step 0 of the lane
  bool wanted_[Layout::kLanes] = {};     // whether their paths are written
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
