#include "ops/hmm_pairwise.h"

#include "core/hmm_counts.h"
#include "core/hmm_dispatch.h"

namespace {

// Writes log xi_t[i][j] for the one sequence of a group. In linear space as a sum of logarithms,
// because the product of the three factors may underflow where its logarithm is well inside range.
template <class Arithmetic, class External>
class PairwiseWriter {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Step = typename BackwardPass<Arithmetic, External>::Step;
  static constexpr int W = Layout::W;

  PairwiseWriter(Arena& arena, const HmmProblem& problem, int64_t sequence)
      : problem_(problem), sequence_(sequence), vectors_(Layout::vectors(problem.states)) {
    from_ = arena.take<Real>(vectors_ * W);
    to_ = arena.take<Real>(vectors_ * W);
  }

  // True when some result is beyond this arithmetic.
  bool write(const Step& at, External* rows) {
    if constexpr (Arithmetic::kExtended) {
      return write_extended(at, rows);
    } else {
      write_linear(at, rows);
      return false;
    }
  }

 private:
  void write_linear(const Step& at, External* rows) {
    for (int64_t v = 0; v < vectors_; ++v) {
      store(from_ + v * W, log_nonnegative<Real>(load(at.predicted + v * W)) + (load(at.emission + v * W) - at.m));
      const V b = log_nonnegative<Real>(load(at.next_backward + v * W));
      store(to_ + v * W, b + (load(at.next_emission + v * W) - at.next_m));
    }
    const V norm = log_nonnegative<Real>(at.total.f) - log_nonnegative<Real>(at.next_scale.factor);
    const Real offset = Real(at.weights->shift) + norm[0];
    const int64_t states = problem_.states;
    const External* potential = static_cast<const External*>(problem_.transition) +
                                sequence_ * problem_.transition_batch + at.t * problem_.transition_time;
    for (int64_t i = 0; i < states; ++i) {
      const External* row = potential + i * problem_.transition_from;
      const Real base = Layout::at(from_, i, 0);
      for (int64_t j = 0; j < states; ++j) {
        const Real weight = Real(row[j * problem_.transition_to]) - offset;
        rows[i * states + j] = External((base + Layout::at(to_, j, 0)) + weight);
      }
    }
  }

  bool write_extended(const Step& at, External* rows) {
    Int<Real> saturated = {};
    const int64_t states = problem_.states;
    const Real top = at.total.e[0], log_total = log_nonnegative<Real>(at.total.f)[0];
    for (int64_t j = 0; j < states; ++j) {
      const Real y = Layout::at(at.next, j, 0), y_e = Layout::at(at.next + vectors_ * W, j, 0);
      for (int64_t v = 0; v < vectors_; ++v) {
        const int64_t w = panel_index(at.weights->panel, states, j, v) * Layout::kWeight;
        const auto a = Arithmetic::get(at.forward, v, vectors_);
        const V f = (a.f * Layout::weight(at.weights->mantissa + w, 0)) * y;
        const V e = ((a.e + Layout::weight(at.weights->exponent + w, 0)) + (y_e - at.next_scale.exponent)) - top;
        V result = e * Real(kLn2) + (log_nonnegative<Real>(f) - log_total);
        result = f == Real(0) ? splat(-kInfinity<Real>) : result;
        saturated |= BackwardPass<Arithmetic, External>::saturated({f, e});
        for (int l = 0; l < (Layout::kMessage == 1 ? W : 1); ++l) {
          const int64_t i = Layout::kMessage == 1 ? v * W + l : v;
          if (i < states) rows[i * states + j] = External(result[l]);
        }
      }
    }
    return any(saturated);
  }

  const HmmProblem& problem_;
  const int64_t sequence_, vectors_;
  Real *from_, *to_;
};

}  // namespace

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_pairwise_group(const HmmTask& task) {
  return dispatch_hmm(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    using Real = typename Arithmetic::Real;
    using Backward = BackwardPass<Arithmetic, External>;
    Group<Arithmetic, External> group(task);
    const int64_t sequence = task.group.segments == nullptr ? 0 : group.lanes.sequence(0);
    ForwardPass<Arithmetic, External> forward(group.arena, group.problem, group.lanes, group.transitions);
    Backward backward(group.arena, group.problem, group.lanes, group.transitions);
    PairwiseWriter<Arithmetic, External> writer(group.arena, group.problem, sequence);
    Real* predicted = group.arena.template take<Real>(group.lanes.steps * forward.message_size());
    if (task.workspace == nullptr) return group.arena.used();
    const FlushDenormals flush;
    const int64_t square = group.problem.states * group.problem.states;
    const auto& out = *static_cast<const HmmPairwiseOutputs*>(task.outputs);
    External* rows = static_cast<External*>(out.pairwise) + sequence * (group.problem.steps - 1) * square;

    if (forward.run(Keep::predicted, predicted, [](auto&&...) SUMPROD_INLINE_LAMBDA {})) {
      backward.run(predicted, [&](const typename Backward::Step& at) {
        if (at.weights == nullptr) return;
        if (writer.write(at, rows + at.t * square)) backward.distrust(~Int<Real>{});
      });
    }
    task.redo[0] = forward.redo(0) || backward.redo(0);
    if (!task.redo[0] && !forward.possible(0)) {
      const External value = External(forward.log_normalizer(0) < 0.0 ? -__builtin_inf() : __builtin_nan(""));
      for (int64_t k = 0; k < (group.lanes.length(0) - 1) * square; ++k) rows[k] = value;
    }
    return group.arena.used();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
