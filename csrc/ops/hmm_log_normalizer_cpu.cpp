#include "ops/hmm_log_normalizer.h"

#include "core/hmm_dispatch.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_log_normalizer_group(const HmmTask& task) {
  return dispatch_hmm(task.tier, task.layout, task.problem->is_double, [&]<class Arithmetic, class External>() {
    Group<Arithmetic, External> group(task);
    ForwardPass<Arithmetic, External> forward(group.arena, group.problem, group.lanes, group.transitions);
    if (task.workspace == nullptr) return group.arena.used();
    const FlushDenormals flush;
    const auto& out = *static_cast<const HmmLogNormalizerOutputs*>(task.outputs);
    forward.run(Keep::nothing, nullptr, [](auto&&...) SUMPROD_INLINE_LAMBDA {});
    for (int64_t k = 0; k < group.lanes.count; ++k) {
      task.redo[k] = forward.redo(k);
      static_cast<External*>(out.log_normalizer)[group.lanes.sequence(k)] = External(forward.log_normalizer(k));
    }
    return group.arena.used();
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
