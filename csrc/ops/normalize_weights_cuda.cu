#include "gpu/slices.cuh"
#include "ops/normalize_weights.h"

namespace sumprod {

namespace {

using gpu::infinity;
using gpu::kSliceThreads;
using gpu::SliceTeams;

// What the first pass leaves for the second, and the two results per slice.
template <class Real>
struct WriteSummary {
  const SliceProblem& problem;
  const NormalizeWeightsCuda& task;
  double count;

  SUMPROD_DEVICE void operator()(int64_t slice, const SlicePartial& sum) const {
    const int64_t at = gpu::offset_of(problem.kept, slice, kResult);
    const double shift = sum.top == -infinity<double>() ? 0.0 : sum.top;
    // Without any weight, -inf - 0 - 0 is what the second pass should write.
    const bool none = sum.top == -infinity<double>() && sum.sum == 0.0;
    static_cast<Real*>(task.log_evidence)[at] = Real(shift + log(sum.sum / count));
    static_cast<Real*>(task.ess)[at] = sum.sum == 0.0 ? Real(0) : Real(sum.sum * sum.sum / sum.squares);
    static_cast<Real*>(task.top)[at] = Real(shift);
    static_cast<Real*>(task.log_sum)[at] = none ? Real(0) : Real(log(sum.sum));
  }
};

template <class Real, int Vector>
__global__ void __launch_bounds__(kSliceThreads)
    sum_kernel(const __grid_constant__ SliceProblem problem, SliceTeams teams, NormalizeWeightsCuda task) {
  gpu::sum_slices<Real, Vector, true>(problem, teams, task.partials,
                                      WriteSummary<Real>{problem, task, double(problem.reduced.count)});
}

template <class Real>
__global__ void __launch_bounds__(kSliceThreads)
    combine_kernel(const __grid_constant__ SliceProblem problem, int64_t chunks, NormalizeWeightsCuda task) {
  gpu::combine_chunks<Real>(problem, chunks, task.partials,
                            WriteSummary<Real>{problem, task, double(problem.reduced.count)});
}

template <class Real>
struct Summary {
  Real top, log_sum;
};

template <class Real, int Vector>
__global__ void __launch_bounds__(kSliceThreads)
    write_kernel(const __grid_constant__ SliceProblem problem, SliceTeams teams, NormalizeWeightsCuda task) {
  const auto parameters = [&](int64_t slice) {
    const int64_t at = gpu::offset_of(problem.kept, slice, kResult);
    return Summary<Real>{static_cast<const Real*>(task.top)[at], static_cast<const Real*>(task.log_sum)[at]};
  };
  gpu::map_slices<Real, Vector>(problem, teams, static_cast<Real*>(task.log_weights), parameters,
                                [](Real w, const Summary<Real>& own) {
                                  const Real below = w == infinity<Real>() ? Real(0) : w - own.top;
                                  return below - own.log_sum;
                                });
}

template <class Real>
int64_t run(const SliceProblem& problem, NormalizeWeightsCuda task, void* scratch, const gpu::Stream& stream) {
  const SliceTeams teams = gpu::teams_for_slices<Real>(problem, task.log_weights, true, stream);
  const int64_t slices = problem.kept.count;
  gpu::SharedArena arena(static_cast<unsigned char*>(scratch));
  task.top = arena.take<Real>(slices);
  task.log_sum = arena.take<Real>(slices);
  task.partials = arena.take<SlicePartial>(teams.chunks > 1 ? slices * teams.chunks : 0);
  if (scratch == nullptr) return arena.used();
  const gpu::LaunchShape shape = gpu::shape_of(problem, teams);
  gpu::with_vector<Real>(teams, [&]<int Vector>() {
    gpu::launch(sum_kernel<Real, Vector>, shape, stream, problem, teams, task);
    if (teams.chunks > 1) {
      gpu::launch(combine_kernel<Real>, gpu::combine_shape(problem), stream, problem, teams.chunks, task);
    }
    gpu::launch(write_kernel<Real, Vector>, shape, stream, problem, teams, task);
  });
  return arena.used();
}

}  // namespace

int64_t normalize_weights_cuda(const SliceProblem& problem, const NormalizeWeightsCuda& task, void* scratch,
                               const gpu::Stream& stream) {
  if (problem.type == SliceType::float64) return run<double>(problem, task, scratch, stream);
  return run<float>(problem, task, scratch, stream);
}

}  // namespace sumprod
