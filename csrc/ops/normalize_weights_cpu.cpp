#include "ops/normalize_weights.h"

#include "core/log_sum_exp.h"
#include "core/slice_map.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

namespace {

template <class Real>
auto write_summary(const NormalizeWeightsTask& task) {
  return [&task](const SliceShape<Real>& shape, const SliceGroup<Real>& group, int64_t, const ChunkSum<Real>& sum) {
    constexpr int W = Simd<Real>::kWidth;
    const Vec<Real> log_sum = log_of_sum<Real>(sum.sum);
    Vec<Real> mean, ess;
    for (int l = 0; l < W; ++l) {
      const double s = sum.sum[l], q = sum.squares[l];
      mean[l] = Real(s / task.count);
      ess[l] = s == 0.0 ? Real(0) : Real(s * s / q);
    }
    write_results(shape, group, sum.top + log_of_sum<Real>(mean), static_cast<Real*>(task.log_evidence));
    write_results(shape, group, ess, static_cast<Real*>(task.ess));
    // Without any weight, -inf - 0 - 0 is what the second pass should write.
    const Int<Real> none = (sum.top == -kInfinity<Real>)&(sum.sum == Real(0));
    write_results(shape, group, none ? splat(Real(0)) : sum.top, static_cast<Real*>(task.top));
    write_results(shape, group, none ? splat(Real(0)) : log_sum, static_cast<Real*>(task.log_sum));
  };
}

template <class Real>
void write(const NormalizeWeightsTask& task) {
  const Real *top = static_cast<const Real*>(task.top), *log_sum = static_cast<const Real*>(task.log_sum);
  const auto parameters = [&](const SliceShape<Real>& shape, const SliceGroup<Real>& group, int64_t, Vec<Real>& a,
                              Vec<Real>& b) {
    a = read_results(shape, group, top);
    b = read_results(shape, group, log_sum);
  };
  const auto normalised = [](Vec<Real> w, Vec<Real> a, Vec<Real> b) SUMPROD_INLINE_LAMBDA {
    const Vec<Real> below = w == kInfinity<Real> ? splat(Real(0)) : w - a;
    return below - b;
  };
  SliceMap<Real, decltype(parameters), decltype(normalised)> map(*task.problem, static_cast<Real*>(task.log_weights),
                                                                 task.workspace, parameters, normalised);
  map.run(task.begin, task.end);
}

template <class F>
SUMPROD_INLINE void dispatch_real(const SliceProblem& problem, F f) {
  if (problem.type == SliceType::float64) return f.template operator()<double>();
  f.template operator()<float>();
}

}  // namespace

SlicePlan normalize_weights_plan(const SliceProblem& problem) {
  return problem.type == SliceType::float64 ? plan_slices<double>(problem) : plan_slices<float>(problem);
}

void normalize_weights_items(const NormalizeWeightsTask& task) {
  dispatch_real(*task.problem, [&]<class Real>() {
    sum_slices<Real, true>(*task.problem, task.begin, task.end, task.workspace, task.partials,
                           write_summary<Real>(task));
  });
}

void normalize_weights_combine(const NormalizeWeightsTask& task) {
  dispatch_real(*task.problem, [&]<class Real>() {
    combine_slices<Real>(*task.problem, task.begin, task.end, task.partials, write_summary<Real>(task));
  });
}

void normalize_weights_write(const NormalizeWeightsTask& task) {
  dispatch_real(*task.problem, [&]<class Real>() { write<Real>(task); });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
