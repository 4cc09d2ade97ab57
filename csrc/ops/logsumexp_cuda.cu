#include "gpu/slices.cuh"
#include "ops/logsumexp.h"

namespace sumprod {

namespace {

using gpu::infinity;
using gpu::kSliceThreads;
using gpu::RealOfSource;
using gpu::SliceTeams;

template <class Real>
struct WriteLogSumExp {
  const SliceProblem& problem;
  Real* result;
  SUMPROD_DEVICE void operator()(int64_t slice, const SlicePartial& sum) const {
    const double shift = sum.top == -infinity<double>() ? 0.0 : sum.top;
    result[gpu::offset_of(problem.kept, slice, kResult)] = Real(shift + log(sum.sum));
  }
};

template <class Source, int Vector>
__global__ void __launch_bounds__(kSliceThreads)
    sum_kernel(const __grid_constant__ SliceProblem problem, SliceTeams teams, SlicePartial* partials, void* result) {
  using Real = RealOfSource<Source>;
  gpu::sum_slices<Source, Vector, false>(problem, teams, partials,
                                         WriteLogSumExp<Real>{problem, static_cast<Real*>(result)});
}

template <class Real>
__global__ void __launch_bounds__(kSliceThreads)
    combine_kernel(const __grid_constant__ SliceProblem problem, int64_t chunks, const SlicePartial* partials,
                   void* result) {
  gpu::combine_chunks<Real>(problem, chunks, partials, WriteLogSumExp<Real>{problem, static_cast<Real*>(result)});
}

template <class Real>
struct Shared {
  Real result, grad;
};

template <class Real, int Vector>
__global__ void __launch_bounds__(kSliceThreads)
    backward_kernel(const __grid_constant__ SliceProblem problem, SliceTeams teams, LogSumExpGradientCuda task) {
  const auto parameters = [&](int64_t slice) {
    const int64_t at = gpu::offset_of(problem.kept, slice, kResult);
    Shared<Real> own{static_cast<const Real*>(task.result)[at], static_cast<const Real*>(task.grad)[at]};
    if (own.result == -infinity<Real>()) own = {Real(0), Real(0)};
    return own;
  };
  gpu::map_slices<Real, Vector>(problem, teams, static_cast<Real*>(task.output), parameters,
                                [](Real x, const Shared<Real>& own) {
                                  const Real below = x - own.result;
                                  return own.grad * exp(below > Real(0) ? Real(0) : below);  // NaN passes
                                });
}

// Slices that hold +inf: its entries share the gradient equally. One warp per slice.
template <class Real>
__global__ void __launch_bounds__(kSliceThreads)
    share_kernel(const __grid_constant__ SliceProblem problem, LogSumExpGradientCuda task) {
  const int64_t warps = int64_t(gridDim.x) * (kSliceThreads / gpu::kWarp);
  for (int64_t slice = int64_t(blockIdx.x) * (kSliceThreads / gpu::kWarp) + gpu::warp_of_thread();
       slice < problem.kept.count; slice += warps) {
    const int64_t at = gpu::offset_of(problem.kept, slice, kResult);
    if (static_cast<const Real*>(task.result)[at] != infinity<Real>()) continue;
    const Real* input = static_cast<const Real*>(problem.input) + gpu::offset_of(problem.kept, slice, kInput);
    Real* output = static_cast<Real*>(task.output) + gpu::offset_of(problem.kept, slice, kOutput);
    const int64_t entries = problem.reduced.count;
    double count = 0.0;
    for (int64_t j = gpu::lane_of_thread(); j < entries; j += gpu::kWarp) {
      count += input[gpu::offset_of(problem.reduced, j, kInput)] == infinity<Real>();
    }
    const Real share = static_cast<const Real*>(task.grad)[at] / Real(gpu::warp_sum(count));
    for (int64_t j = gpu::lane_of_thread(); j < entries; j += gpu::kWarp) {
      const bool infinite = input[gpu::offset_of(problem.reduced, j, kInput)] == infinity<Real>();
      output[gpu::offset_of(problem.reduced, j, kOutput)] = infinite ? share : Real(0);
    }
  }
}

template <class Source>
int64_t forward(const LogSumExpCuda& task, const gpu::Stream& stream) {
  using Real = RealOfSource<Source>;
  const SliceProblem& problem = task.problem;
  const SliceTeams teams = gpu::teams_for_slices<Source>(problem, nullptr, true, stream);
  const int64_t bytes = teams.chunks > 1 ? problem.kept.count * teams.chunks * int64_t(sizeof(SlicePartial)) : 0;
  if (task.result == nullptr) return bytes;
  auto* partials = static_cast<SlicePartial*>(task.scratch);
  gpu::with_vector<Source>(teams, [&]<int Vector>() {
    gpu::launch(sum_kernel<Source, Vector>, gpu::shape_of(problem, teams), stream, problem, teams, partials,
                task.result);
  });
  if (teams.chunks > 1) {
    gpu::launch(combine_kernel<Real>, gpu::combine_shape(problem), stream, problem, teams.chunks, partials,
                task.result);
  }
  return bytes;
}

template <class Real>
void backward(const SliceProblem& problem, const LogSumExpGradientCuda& task, const gpu::Stream& stream) {
  const SliceTeams teams = gpu::teams_for_slices<Real>(problem, task.output, true, stream);
  gpu::with_vector<Real>(teams, [&]<int Vector>() {
    gpu::launch(backward_kernel<Real, Vector>, gpu::shape_of(problem, teams), stream, problem, teams, task);
  });
  gpu::launch(share_kernel<Real>, gpu::combine_shape(problem), stream, problem, task);
}

}  // namespace

int64_t logsumexp_cuda(const LogSumExpCuda& task, const gpu::Stream& stream) {
  switch (task.problem.type) {
    case SliceType::float32:
      return forward<float>(task, stream);
    case SliceType::float64:
      return forward<double>(task, stream);
    case SliceType::float16:
      return forward<gpu::Float16>(task, stream);
    case SliceType::bfloat16:
      return forward<gpu::BFloat16>(task, stream);
  }
  return 0;
}

void logsumexp_backward_cuda(const SliceProblem& problem, const LogSumExpGradientCuda& task,
                             const gpu::Stream& stream) {
  if (problem.type == SliceType::float64) return backward<double>(problem, task, stream);
  backward<float>(problem, task, stream);
}

}  // namespace sumprod
