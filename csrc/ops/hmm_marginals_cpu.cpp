#include "ops/hmm_marginals.h"

#include "core/hmm_dispatch.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_marginals_group(const HmmTask& task) {
  return dispatch_hmm(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    using Layout = typename Arithmetic::Layout;
    using Real = typename Arithmetic::Real;
    using V = Vec<Real>;
    using Backward = BackwardPass<Arithmetic, External>;
    constexpr int W = Layout::W;
    Group<Arithmetic, External> group(task);
    ForwardPass<Arithmetic, External> forward(group.arena, group.problem, group.lanes, group.transitions);
    Backward backward(group.arena, group.problem, group.lanes, group.transitions);
    Tile<Layout, External> tile(group.arena, group.lanes, group.problem.states);
    Real* predicted = group.arena.template take<Real>(group.lanes.steps * forward.message_size());
    if (task.workspace == nullptr) return group.arena.used();
    const FlushDenormals flush;
    const int64_t steps = group.problem.steps, states = group.problem.states, vectors = Layout::vectors(states);
    const auto& out = *static_cast<const HmmMarginalsOutputs*>(task.outputs);
    External* marginals = static_cast<External*>(out.marginals);
    tile.bind(marginals, steps * states, states, 1);

    if (forward.run(Keep::predicted, predicted, [](auto&&...) SUMPROD_INLINE_LAMBDA {})) {
      backward.run(predicted, [&](const typename Backward::Step& at) SUMPROD_INLINE_LAMBDA {
        Real* row = tile.write(at.t);
        Int<Real> saturated = {};
        const V log_total = Arithmetic::log(at.total);
        for (int64_t v = 0; v < vectors; ++v) {
          const auto b = Arithmetic::get(at.backward, v, vectors);
          V result;
          if constexpr (Arithmetic::kExtended) {
            const auto x = Arithmetic::multiply(Arithmetic::get(at.forward, v, vectors), b);
            result = Arithmetic::log({x.f / at.total.f, x.e - at.total.e});
            saturated |= backward.saturated(x);
          } else {
            const V p = load(at.predicted + v * W);
            const V both =
                at.watched ? log_nonnegative<Real>(p) + log_nonnegative<Real>(b.f) : log_nonnegative<Real>(p * b.f);
            result = (both + (load(at.emission + v * W) - at.m)) - log_total;
          }
          store(row + v * W, result);
        }
        if constexpr (Arithmetic::kExtended) backward.distrust(Layout::any_over_states(saturated));
      });
      tile.flush();
    }
    for (int64_t k = 0; k < group.lanes.count; ++k) {
      task.redo[k] = forward.redo(k) || backward.redo(k);
      if (task.redo[k] || forward.possible(k)) continue;
      const double z = forward.log_normalizer(k);
      group.fill_rows(marginals, k, External(z < 0.0 ? -__builtin_inf() : __builtin_nan("")));
    }
    return group.arena.used();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
