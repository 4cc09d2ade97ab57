#include "ops/logsumexp.h"

#include "core/log_sum_exp.h"
#include "core/slice_map.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

namespace {

template <class Real>
auto write_log_sum_exp(void* result) {
  return [out = static_cast<Real*>(result)](const SliceShape<Real>& shape, const SliceGroup<Real>& group, int64_t,
                                            const ChunkSum<Real>& sum) {
    write_results(shape, group, sum.top + log_of_sum<Real>(sum.sum), out);
  };
}

template <class Real>
void share_gradient(const SliceProblem& problem, const Offsets& lane, Real g, Real* output) {
  const Real* input = static_cast<const Real*>(problem.input) + lane.of[kInput];
  const SliceLoop& reduced = problem.reduced;
  Real count = 0;
  for (int64_t j = 0; j < reduced.count; ++j) count += input[offsets_at(reduced, j).of[kInput]] == kInfinity<Real>;
  for (int64_t j = 0; j < reduced.count; ++j) {
    const Offsets at = offsets_at(reduced, j);
    output[lane.of[kOutput] + at.of[kOutput]] = input[at.of[kInput]] == kInfinity<Real> ? g / count : Real(0);
  }
}

template <class Real>
void backward(const LogSumExpBackwardTask& task) {
  const SliceProblem& problem = *task.problem;
  const Real *grad = static_cast<const Real*>(task.grad), *result = static_cast<const Real*>(task.result);
  Real* output = static_cast<Real*>(task.output);
  const auto parameters = [&](const SliceShape<Real>& shape, const SliceGroup<Real>& group, int64_t, Vec<Real>& out,
                              Vec<Real>& g) {
    out = read_results(shape, group, result);
    g = read_results(shape, group, grad);
    g = out == -kInfinity<Real> ? splat(Real(0)) : g;
    out = out == -kInfinity<Real> ? splat(Real(0)) : out;
  };
  const auto gradient = [](Vec<Real> x, Vec<Real> out, Vec<Real> g) SUMPROD_INLINE_LAMBDA {
    Vec<Real> below = x - out;
    below = below > Real(0) ? splat(Real(0)) : below;  // NaN passes
    return g * exp_nonpositive<Real>(below);
  };
  SliceMap<Real, decltype(parameters), decltype(gradient)> map(problem, output, task.workspace, parameters, gradient);
  map.run(task.begin, task.end);
}

template <class Real>
bool any_infinite(const SliceProblem& problem, const void* results) {
  const Real* result = static_cast<const Real*>(results);
  int found = 0;
  for (int64_t k = 0; k < problem.kept.count; ++k) found |= result[k] == kInfinity<Real>;
  return found != 0;
}

// Slices that hold +inf: its entries share the gradient equally.
template <class Real>
void share(const LogSumExpBackwardTask& task) {
  for (int64_t k = task.begin; k < task.end; ++k) {
    const Offsets lane = offsets_at(task.problem->kept, k);
    if (static_cast<const Real*>(task.result)[lane.of[kResult]] != kInfinity<Real>) continue;
    share_gradient(*task.problem, lane, static_cast<const Real*>(task.grad)[lane.of[kResult]],
                   static_cast<Real*>(task.output));
  }
}

}  // namespace

SlicePlan logsumexp_plan(const SliceProblem& problem) {
  return dispatch_slices(problem.type, [&]<class Source>() { return plan_slices<Source>(problem); });
}

void logsumexp_items(const LogSumExpTask& task) {
  dispatch_slices(task.problem->type, [&]<class Source>() {
    sum_slices<Source, false>(*task.problem, task.begin, task.end, task.workspace, task.partials,
                              write_log_sum_exp<RealOf<Source>>(task.result));
  });
}

void logsumexp_combine(const LogSumExpTask& task) {
  if (task.problem->type == SliceType::float64) {
    combine_slices<double>(*task.problem, task.begin, task.end, task.partials, write_log_sum_exp<double>(task.result));
  } else {
    combine_slices<float>(*task.problem, task.begin, task.end, task.partials, write_log_sum_exp<float>(task.result));
  }
}

void logsumexp_backward_items(const LogSumExpBackwardTask& task) {
  if (task.problem->type == SliceType::float64) return backward<double>(task);
  backward<float>(task);
}

bool logsumexp_any_infinite(const SliceProblem& problem, const void* result) {
  return problem.type == SliceType::float64 ? any_infinite<double>(problem, result)
                                            : any_infinite<float>(problem, result);
}

void logsumexp_backward_share(const LogSumExpBackwardTask& task) {
  if (task.problem->type == SliceType::float64) return share<double>(task);
  share<float>(task);
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
