#include "ops/normalize_weights.h"

#include <limits>
#include <tuple>
#include <vector>

#include "ops/registration.h"
#include "ops/slices.h"
#include "ops/workspace.h"

namespace sumprod {

namespace {

std::tuple<Tensor, Tensor, Tensor> normalize_weights(const Tensor& log_weights, int64_t dim) {
  Tensor normalised = torch::stable::empty_like(log_weights);
  const SliceInputs in("normalize_weights", log_weights, {dim}, &normalised);
  const SliceProblem& problem = in.problem;
  STD_TORCH_CHECK(problem.type == SliceType::float32 || problem.type == SliceType::float64,
                  "sumprod::normalize_weights: log_weights must be float32 or float64");
  const std::vector<int64_t> sizes = in.result_sizes(false);
  Tensor evidence = torch::stable::new_empty(log_weights, {sizes.data(), sizes.size()});
  Tensor ess = torch::stable::new_empty(log_weights, {sizes.data(), sizes.size()});
  if (in.empty()) {
    torch::stable::fill_(evidence, -std::numeric_limits<double>::infinity());
    torch::stable::fill_(ess, 0.0);
    return {normalised, evidence, ess};
  }
  const SlicePlan plan = SUMPROD_KERNEL(normalize_weights_plan)(problem);
  const int64_t items = plan.groups * plan.chunks, slots = plan.chunks > 1 ? items * plan.slices_per_group : 0;
  const double entries = entries_per_item(problem, plan);
  const int workers = slice_workers(items, entries);
  const Workspace workspace(workers, plan.workspace_bytes);
  const Workspace tops(2, problem.kept.count * static_cast<int64_t>(sizeof(double)));
  std::vector<SlicePartial> partials(static_cast<size_t>(slots));
  const NormalizeWeightsTask task{&problem,
                                  0,
                                  plan.groups,
                                  nullptr,
                                  partials.data(),
                                  static_cast<double>(problem.reduced.count),
                                  tops.of(0),
                                  tops.of(1),
                                  normalised.mutable_data_ptr(),
                                  evidence.mutable_data_ptr(),
                                  ess.mutable_data_ptr()};
  const auto spread = [&](void (*kernel)(const NormalizeWeightsTask&)) {
    run_slices(items, entries, workers, [&](int64_t begin, int64_t end, int worker) {
      NormalizeWeightsTask part = task;
      part.begin = begin;
      part.end = end;
      part.workspace = workspace.of(worker);
      kernel(part);
    });
  };
  spread(SUMPROD_KERNEL(normalize_weights_items));
  if (plan.chunks > 1) SUMPROD_KERNEL(normalize_weights_combine)(task);
  spread(SUMPROD_KERNEL(normalize_weights_write));
  return {normalised, evidence, ess};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("normalize_weights(Tensor log_weights, int dim) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("normalize_weights", TORCH_BOX(&normalize_weights)); }

}  // namespace sumprod
