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
    predicted_ = group_.arena.template take<Real>(group_.lanes.steps * forward_.message_size());
    counted_segment_ = group_.arena.template take<bool>(group_.lanes.count);
  }

  int64_t bytes() const { return group_.arena.used(); }

  void run() {
    bool usable = forward_.run(Keep::predicted, predicted_, [](auto&&...) SUMPROD_INLINE_LAMBDA {});
    if (usable && out_.kind == TransitionGradient::shared_steps) {
      // What is added to a sum cannot be taken back: find out first whether this tier will do.
      backward_.run(predicted_, [](const Step&) SUMPROD_INLINE_LAMBDA {});
      usable = !backward_.redo(0);
    }
    for (int64_t k = 0; k < group_.lanes.count; ++k) counted_segment_[k] = !forward_.redo(k) && !impossible(k);
    if (usable) {
      sweep();
      // What was counted cannot be taken back: count again without those that must be redone.
      if (sums_over_time() && exclude_redone()) {
        counts_.clear();
        if (any_counted()) sweep();
      }
    }
    for (int64_t k = 0; k < group_.lanes.count; ++k) {
      task_.redo[k] = forward_.redo(k) || backward_.redo(k);
      if (!task_.redo[k]) finish(k);
    }
    if (usable && sums_over_time() && group_.lanes.steps > 1) add_counts();
  }

 private:
  bool sums_over_time() const {
    return out_.kind == TransitionGradient::shared || out_.kind == TransitionGradient::own;
  }

  // Total weight zero: no path, so nothing to count. (NaN is counted, and spreads.)
  bool impossible(int64_t k) const { return !forward_.possible(k) && forward_.log_normalizer(k) < 0.0; }

  // The backward pass with all that is made of it.
  void sweep() {
    External* emission = static_cast<External*>(out_.emission);
    tile_.bind(emission, group_.problem.steps * states_, states_, 1);
    counts_.clear();
    backward_.run(predicted_, [&](const Step& at) SUMPROD_INLINE_LAMBDA {
      if (group_.lanes.ends_at(at.t)) enter_segments();
      write_posterior(at, upstream_);
      if (at.weights == nullptr) return;
      if (sums_over_time()) {
        counts_.add(at, counted_, upstream_);
      } else {
        write_step(at, upstream_);
      }
    });
    counts_.flush();
    tile_.flush();
  }

  // Goes on with the sequences that the lanes are in now.
  void enter_segments() {
    const External* upstream = static_cast<const External*>(out_.upstream);
    for (int l = 0; l < W; ++l) {
      const int lane = l < Layout::kLanes ? l : 0;
      if (group_.lanes.first(lane) == group_.lanes.first(lane + 1)) continue;
      const int64_t k = backward_.cursor().segment(lane);
      upstream_[l] = Real(upstream[group_.lanes.sequence(k)]);
      counted_[l] = counted_segment_[k] ? -1 : 0;
    }
  }

  bool any_counted() const {
    for (int64_t k = 0; k < group_.lanes.count; ++k) {
      if (counted_segment_[k]) return true;
    }
    return false;
  }

  // Whether the backward pass gave up a sequence that was counted; the next sweep will not.
  bool exclude_redone() {
    bool again = false;
    for (int64_t k = 0; k < group_.lanes.count; ++k) {
      again = again || (counted_segment_[k] && backward_.redo(k));
      counted_segment_[k] = counted_segment_[k] && !backward_.redo(k);
    }
    return again;
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
  // layout, only lane 0 does); steps of a sequence to be redone are written again then.
  void write_step(const Step& at, V upstream) {
    const bool shared = out_.kind == TransitionGradient::shared_steps;
    const int64_t square = states_ * states_, steps = group_.problem.steps - 1;
    const int64_t offset = ((shared ? 0 : group_.lanes.sequence(0) * steps) + at.t) * square;
    if (!forward_.possible(0)) return;
    visit_pairs<Arithmetic, External>(at, states_, [&](int64_t j, int64_t v, V x) {
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
  void finish(int64_t k) {
    const int64_t b = group_.lanes.sequence(k);
    External* rows = static_cast<External*>(out_.emission) + b * group_.problem.steps * states_;
    if (!forward_.possible(k)) {
      const bool zero = impossible(k);
      const External value = zero ? External(0) : External(__builtin_nan(""));
      group_.fill_rows(static_cast<External*>(out_.emission), k, value);
      if (!sums_over_time() && !zero) fill_steps(b, k, value);
    }
    for (int64_t s = 0; s < states_; ++s) static_cast<External*>(out_.initial)[b * states_ + s] = rows[s];
  }

  void fill_steps(int64_t b, int64_t segment, External value) {
    const int64_t square = states_ * states_, steps = group_.problem.steps - 1;
    for (int64_t k = 0; k < (group_.lanes.length(segment) - 1) * square; ++k) {
      if (out_.kind == TransitionGradient::shared_steps) {
        static_cast<double*>(out_.transition)[k] += double(value);
      } else {
        static_cast<External*>(out_.transition)[b * steps * square + k] = value;
      }
    }
  }

  // Adds this group's counts to its partial result.
  void add_counts() {
    const int64_t unit = out_.kind == TransitionGradient::shared ? task_.unit : group_.lanes.sequence(0);
    counts_.collect(group_.transitions.at(0, false),
                    [&](int64_t i, int64_t j, double x) SUMPROD_INLINE_LAMBDA { add_count(unit, i, j, x); });
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
  bool* counted_segment_;
  V upstream_ = {};  // of the sequences that the lanes are in, and whether they are counted
  Int<Real> counted_ = {};
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
