// From a task's run-time description to the template that runs it.
#pragma once

#include "core/hmm_passes.h"

namespace {

using sumprod::HmmLayout;
using sumprod::HmmShared;
using sumprod::HmmTask;
using sumprod::HmmTier;
using sumprod::HmmWeights;

// Calls f.template operator()<Arithmetic, External>(). The double tier of a float problem is
// rare and always runs lane by sequence, also for a single sequence.
template <class F>
auto dispatch_hmm(HmmTier tier, HmmLayout layout, bool is_double, F f) {
  const bool by_state = layout == HmmLayout::lane_is_state;
  if (is_double) {
    if (tier == HmmTier::linear) {
      return by_state ? f.template operator()<Linear<LaneIsState<double>>, double>()
                      : f.template operator()<Linear<LaneIsSequence<double>>, double>();
    }
    return by_state ? f.template operator()<Extended<LaneIsState<double>>, double>()
                    : f.template operator()<Extended<LaneIsSequence<double>>, double>();
  }
  if (tier == HmmTier::linear) {
    return by_state ? f.template operator()<Linear<LaneIsState<float>>, float>()
                    : f.template operator()<Linear<LaneIsSequence<float>>, float>();
  }
  if (tier == HmmTier::extended) {
    return by_state ? f.template operator()<Extended<LaneIsState<float>>, float>()
                    : f.template operator()<Extended<LaneIsSequence<float>>, float>();
  }
  return f.template operator()<Extended<LaneIsSequence<double>>, float>();
}

template <class F>
auto dispatch_max_plus(HmmTier tier, HmmLayout layout, bool is_double, F f) {
  const bool by_state = layout == HmmLayout::lane_is_state;
  if (is_double) {
    return by_state ? f.template operator()<MaxPlus<LaneIsState<double>>, double>()
                    : f.template operator()<MaxPlus<LaneIsSequence<double>>, double>();
  }
  if (tier == HmmTier::max_plus_double) return f.template operator()<MaxPlus<LaneIsSequence<double>>, float>();
  return by_state ? f.template operator()<MaxPlus<LaneIsState<float>>, float>()
                  : f.template operator()<MaxPlus<LaneIsSequence<float>>, float>();
}

// Everything that a group kernel starts from.
template <class Arithmetic, class External>
struct Group {
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;

  const HmmProblem& problem;
  Arena arena;
  Lanes<Layout> lanes;
  Weights<Real> forward, backward;
  Transitions<Arithmetic, External> transitions;

  explicit Group(const HmmTask& task)
      : problem(*task.problem),
        arena(task.workspace),
        lanes(arena, problem, task.group),
        forward(weights_of(task.shared->forward)),
        backward(weights_of(task.shared->backward)),
        transitions(arena, problem, forward.mantissa == nullptr ? nullptr : &forward,
                    forward.mantissa == nullptr ? nullptr : &backward,
                    task.group.segments == nullptr ? 0 : task.group.segments[0].sequence) {}

  static Weights<Real> weights_of(const HmmWeights& w) {
    return {static_cast<const Real*>(w.mantissa),
            static_cast<const Real*>(w.exponent),
            w.panel,
            w.shift,
            w.lowest,
            w.dense,
            w.invalid};
  }

  // Rows 0 .. length-1 of segment k's sequence in a contiguous [batch, steps, states] output.
  void fill_rows(External* output, int64_t k, External value) const {
    External* rows = output + lanes.sequence(k) * problem.steps * problem.states;
    for (int64_t i = 0; i < lanes.length(k) * problem.states; ++i) rows[i] = value;
  }
};

}  // namespace
