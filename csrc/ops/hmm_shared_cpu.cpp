#include "ops/hmm_shared.h"
#include "core/hmm_dispatch.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

int64_t hmm_prepare(const HmmPreparation& request) {
  const HmmProblem& problem = *request.problem;
  const auto prepare = [&]<class Arithmetic, class External>() {
    using Real = typename Arithmetic::Real;
    const int64_t size = Arithmetic::kParts * weight_size<typename Arithmetic::Layout>(problem.states);
    if (request.storage != nullptr) {
      const FlushDenormals flush;
      const auto* potential = static_cast<const External*>(problem.transition);
      Real* storage = static_cast<Real*>(request.storage);
      const auto describe = [](const Weights<Real>& w) {
        return HmmWeights{w.mantissa, w.exponent, w.panel, w.shift, w.lowest, w.dense, w.invalid};
      };
      request.shared->forward = describe(prepare_weights<Arithmetic>(potential, problem.transition_from,
                                                                     problem.transition_to, problem.states, storage));
      if (request.backward) {
        request.shared->backward = describe(prepare_weights<Arithmetic>(
            potential, problem.transition_to, problem.transition_from, problem.states, storage + size));
      }
    }
    return int64_t(sizeof(Real)) * size * (request.backward ? 2 : 1);
  };
  if (request.tier == HmmTier::max_plus || request.tier == HmmTier::max_plus_double) {
    return dispatch_max_plus(request.tier, request.layout, problem.is_double, prepare);
  }
  return dispatch_hmm(request.tier, request.layout, problem.is_double, prepare);
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
