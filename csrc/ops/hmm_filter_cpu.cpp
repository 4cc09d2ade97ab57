#include "ops/hmm_filter.h"

#include "core/hmm_dispatch.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_filter_group(const HmmTask& task) {
  return dispatch_hmm(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    using Layout = typename Arithmetic::Layout;
    using Real = typename Arithmetic::Real;
    using V = Vec<Real>;
    constexpr int W = Layout::W;
    Group<Arithmetic, External> group(task);
    ForwardPass<Arithmetic, External> forward(group.arena, group.problem, group.lanes, group.transitions);
    Tile<Layout, External> tile(group.arena, group.lanes, group.problem.states);
    if (task.workspace == nullptr) return group.arena.used();
    const FlushDenormals flush;
    const int64_t steps = group.problem.steps, states = group.problem.states, vectors = Layout::vectors(states);
    const auto& out = *static_cast<const HmmFilterOutputs*>(task.outputs);
    tile.bind(static_cast<External*>(out.filtered), steps * states, states, 1);

    const auto visit = [&](int64_t t, const Real* e, V m, const Real* p, const Real* a) SUMPROD_INLINE_LAMBDA {
      const auto total = Arithmetic::sum(a, states, vectors);
      const V log_total = Arithmetic::log(total);
      const V guard = log_total == -kInfinity<Real> ? V{} : log_total;  // -inf rows, not NaN
      Real* row = tile.write(t);
      Int<Real> saturated = {};
      for (int64_t v = 0; v < vectors; ++v) {
        V result;
        if constexpr (Arithmetic::kExtended) {
          const auto x = Arithmetic::get(a, v, vectors);
          const V top = log_total == -kInfinity<Real> ? V{} : total.e;
          result = Arithmetic::log({x.f / total.f, x.e - top});
          saturated |= forward.saturated(x);
          result = x.f == Real(0) ? splat(-kInfinity<Real>) : result;
        } else {
          // Through the predicted message: exp(emission) may have underflowed, its log has not.
          result = log_nonnegative<Real>(load(p + v * W)) + (load(e + v * W) - m) - guard;
        }
        store(row + v * W, result);
      }
      if constexpr (Arithmetic::kExtended) forward.distrust(Layout::any_over_states(saturated));
    };
    forward.run(Keep::nothing, nullptr, visit);
    tile.flush();
    for (int64_t k = 0; k < group.lanes.count; ++k) task.redo[k] = forward.redo(k);
    return group.arena.used();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
