#include "core/hmm_counts.h"
#include "core/hmm_dispatch.h"
#include "ops/hmm_log_normalizer.h"

namespace {

using sumprod::HmmLogNormalizerGradients;
using sumprod::TransitionGradient;

template <class Arithmetic, class External>
class GradientTask {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Backward = BackwardPass<Arithmetic, External>;
  using Step = typename Backward::Step;
  static constexpr int W = Layout::W;

  explicit GradientTask(const HmmTask& task)
      : task_(task),
        out_(*static_cast<const HmmLogNormalizerGradients*>(task.outputs)),
        group_(task),
        forward_(group_.arena, group_.problem, group_.lanes, group_.transitions),
        backward_(group_.arena, group_.problem, group_.lanes, group_.transitions),
        tile_(group_.arena, group_.lanes, group_.problem.states),
        counts_(group_.arena, group_.problem.states),
        states_(group_.problem.states),
        vectors_(Layout::vectors(group_.problem.states)) {
    predicted_ = group_.arena.template take<Real>(group_.lanes.longest * forward_.message_size());
  }

  int64_t bytes() const { return group_.arena.used(); }

  void run() {
    const int64_t steps = group_.problem.steps;
    External* emission = static_cast<External*>(out_.emission);
    tile_.bind(emission, steps * states_, states_, 1);
    counts_.clear();
    V upstream = {};
    for (int l = 0; l < W; ++l) {
      upstream[l] =
          Real(static_cast<const External*>(out_.upstream)[group_.lanes.sequence[l < Layout::kLanes ? l : 0]]);
    }
    bool usable = forward_.run(Keep::predicted, predicted_, [](auto&&...) SUMPROD_INLINE_LAMBDA {});
    if (usable && out_.kind == TransitionGradient::shared_steps) {
      // What is added to a sum cannot be taken back: find out first whether this tier will do.
      backward_.run(predicted_, [](const Step&) SUMPROD_INLINE_LAMBDA {});
      usable = !backward_.all_redo();
    }
    if (usable) {
      backward_.run(predicted_, [&](const Step& at) SUMPROD_INLINE_LAMBDA {
        write_posterior(at, upstream);
        if (at.weights == nullptr) return;
        if (sums_over_time()) {
          counts_.add(at);
        } else {
          write_step(at, upstream);
        }
      });
      counts_.flush();
      tile_.flush();
    }
    for (int l = 0; l < group_.lanes.count; ++l) {
      task_.redo[l] = forward_.redo(l) || backward_.redo(l);
      if (!task_.redo[l]) finish(l);
    }
    if (sums_over_time() && group_.lanes.longest > 1) add_counts(upstream);
  }

 private:
  bool sums_over_time() const {
    return out_.kind == TransitionGradient::shared || out_.kind == TransitionGradient::own;
  }

  void write_posterior(const Step& at, V upstream) {
    Real* row = tile_.write(at.t);
    const V scale = upstream / at.total.f;
    for (int64_t v = 0; v < vectors_; ++v) {
      const auto x =
          Arithmetic::multiply(Arithmetic::get(at.forward, v, vectors_), Arithmetic::get(at.backward, v, vectors_));
      if constexpr (Arithmetic::kExtended) {
        store(row + v * W, (x.f * pow2_nonpositive<Real>(x.e - at.total.e)) * scale);
      } else {
        store(row + v * W, x.f * scale);
      }
    }
  }

  // Gradient of one time-varying transition. One lane carries the sequence (or, in the lane
  // layout, only lane 0 does); steps of a sequence to be redone are skipped and written then.
  void write_step(const Step& at, V upstream) {
    const bool shared = out_.kind == TransitionGradient::shared_steps;
    const int64_t square = states_ * states_, steps = group_.problem.steps - 1;
    const int64_t offset = ((shared ? 0 : group_.lanes.sequence[0] * steps) + at.t) * square;
    if (backward_.redo(0) || !forward_.possible(0)) return;
    TransitionCounts<Arithmetic, External>::visit_pairs(at, states_, [&](int64_t j, int64_t v, V x) {
      const V scaled = x * upstream;
      for (int l = 0; l < (Layout::kMessage == 1 ? W : 1); ++l) {
        const int64_t i = Layout::kMessage == 1 ? v * W + l : v;
        if (i >= states_) break;
        if (shared) {
          static_cast<double*>(out_.transition)[offset + i * states_ + j] += double(scaled[l]);
        } else {
          static_cast<External*>(out_.transition)[offset + i * states_ + j] = External(scaled[l]);
        }
      }
    });
  }

  // Copies the first step's posterior to the initial gradient; overrides exceptional sequences.
  void finish(int l) {
    const int64_t b = group_.lanes.sequence[l];
    External* rows = static_cast<External*>(out_.emission) + b * group_.problem.steps * states_;
    if (!forward_.possible(l)) {
      const bool zero = forward_.log_normalizer(l) < 0.0;
      const External value = zero ? External(0) : External(__builtin_nan(""));
      group_.fill_rows(static_cast<External*>(out_.emission), l, value);
      if (!sums_over_time() && !zero) fill_steps(b, l, value);
    }
    for (int64_t s = 0; s < states_; ++s) static_cast<External*>(out_.initial)[b * states_ + s] = rows[s];
  }

  void fill_steps(int64_t b, int lane, External value) {
    const int64_t square = states_ * states_, steps = group_.problem.steps - 1;
    for (int64_t k = 0; k < (group_.lanes.length[lane] - 1) * square; ++k) {
      if (out_.kind == TransitionGradient::shared_steps) {
        static_cast<double*>(out_.transition)[k] += double(value);
      } else {
        static_cast<External*>(out_.transition)[b * steps * square + k] = value;
      }
    }
  }

  // Adds this group's counts, weighted by the upstream gradient, to its partial result.
  void add_counts(V upstream) {
    Int<Real> use = {};
    for (int l = 0; l < W; ++l) {
      const int lane = l < Layout::kLanes ? l : 0;
      if (lane >= group_.lanes.count || task_.redo[lane] || group_.lanes.length[lane] < 2) continue;
      const double z = forward_.log_normalizer(lane);
      use[l] = z < 0.0 && !forward_.possible(lane) ? 0 : -1;
    }
    const auto& weights = group_.transitions.at(0, true);
    const int64_t unit = out_.kind == TransitionGradient::shared ? task_.unit : group_.lanes.sequence[0];
    const auto weighted = [&](int64_t j, int64_t v) SUMPROD_INLINE_LAMBDA {
      const V x = use ? counts_.count(j, v) * upstream : V{};
      if constexpr (Arithmetic::kExtended) return x;
      const int64_t panel = weights.panel;
      const int64_t w = (v / panel * panel * states_ + j * panel + v % panel) * Layout::kWeight;
      return x * Layout::weight(weights.mantissa + w, 0);
    };
    for (int64_t j = 0; j < states_; ++j) {
      if constexpr (Layout::kMessage == 1) {
        for (int64_t v = 0; v < vectors_; ++v) {
          const V x = weighted(j, v);
          for (int l = 0; l < W && v * W + l < states_; ++l) add_count(unit, v * W + l, j, double(x[l]));
        }
      } else {
        // The sum over lanes of W registers at once: transpose, then add.
        for (int64_t first = 0; first < states_; first += W) {
          V square[W];
          for (int k = 0; k < W; ++k) square[k] = first + k < states_ ? weighted(j, first + k) : V{};
          transpose<Real>(square);
          V total = square[0];
          SUMPROD_UNROLL
          for (int k = 1; k < W; ++k) total += square[k];
          for (int k = 0; k < W && first + k < states_; ++k) add_count(unit, first + k, j, double(total[k]));
        }
      }
    }
  }
  void add_count(int64_t unit, int64_t i, int64_t j, double x) {
    const int64_t at = (unit * states_ + i) * states_ + j;
    if (out_.kind == TransitionGradient::shared) {
      static_cast<double*>(out_.transition)[at] += x;
    } else {
      static_cast<External*>(out_.transition)[at] = External(x);
    }
  }

  const HmmTask& task_;
  const HmmLogNormalizerGradients& out_;
  Group<Arithmetic, External> group_;
  ForwardPass<Arithmetic, External> forward_;
  Backward backward_;
  Tile<Layout, External> tile_;
  TransitionCounts<Arithmetic, External> counts_;
  const int64_t states_, vectors_;
  Real* predicted_;
};

}  // namespace

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_log_normalizer_backward_group(const HmmTask& task) {
  return dispatch_hmm(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    GradientTask<Arithmetic, External> gradient(task);
    if (task.workspace != nullptr) {
      const FlushDenormals flush;
      gradient.run();
    }
    return gradient.bytes();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
