#include "ops/logsumexp.h"

#include <limits>
#include <vector>

#include "ops/logsumexp_checks.h"
#include "ops/registration.h"
#include "ops/slices.h"
#include "ops/workspace.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

Tensor logsumexp(const Tensor& input, std::vector<int64_t> dim, bool keepdim) {
  const SliceInputs in("logsumexp", input, dim);
  const SliceProblem& problem = in.problem;
  const bool half = problem.type == SliceType::float16 || problem.type == SliceType::bfloat16;
  const std::vector<int64_t> sizes = in.result_sizes(keepdim);
  Tensor result =
      torch::stable::new_empty(input, {sizes.data(), sizes.size()}, half ? ScalarType::Float : input.scalar_type());
  if (in.empty()) {
    torch::stable::fill_(result, -std::numeric_limits<double>::infinity());
  } else {
    const SlicePlan plan = SUMPROD_KERNEL(logsumexp_plan)(problem);
    const int64_t items = plan.groups * plan.chunks, slots = plan.chunks > 1 ? items * plan.slices_per_group : 0;
    const double entries = entries_per_item(problem, plan);
    const int workers = slice_workers(items, entries);
    const Workspace workspace(workers, plan.workspace_bytes);
    std::vector<SlicePartial> partials(static_cast<size_t>(slots));
    LogSumExpTask task{&problem, 0, plan.groups, nullptr, partials.data(), result.mutable_data_ptr()};
    run_slices(items, entries, workers, [&](int64_t begin, int64_t end, int worker) {
      LogSumExpTask part = task;
      part.begin = begin;
      part.end = end;
      part.workspace = workspace.of(worker);
      SUMPROD_KERNEL(logsumexp_items)(part);
    });
    if (plan.chunks > 1) SUMPROD_KERNEL(logsumexp_combine)(task);
  }
  return half ? torch::stable::to(result, input.scalar_type()) : result;
}

Tensor logsumexp_backward(const Tensor& grad, const Tensor& input, const Tensor& output, std::vector<int64_t> dim) {
  Tensor grad_input = torch::stable::empty_like(input);
  const SliceInputs in("logsumexp_backward", input, dim, &grad_input);
  const SliceProblem& problem = in.problem;
  check_logsumexp_backward(in, grad, input, output);
  if (in.empty()) return grad_input;
  const Tensor g = grad.is_contiguous() ? grad : torch::stable::contiguous(grad);
  const Tensor out = output.is_contiguous() ? output : torch::stable::contiguous(output);
  const SlicePlan plan = SUMPROD_KERNEL(logsumexp_plan)(problem);
  const int64_t items = plan.groups * plan.chunks;
  const double entries = entries_per_item(problem, plan);
  const int workers = slice_workers(items, entries);
  const Workspace workspace(workers, plan.workspace_bytes);
  LogSumExpBackwardTask task{&problem,
                             0,
                             problem.kept.count,
                             nullptr,
                             g.const_data_ptr(),
                             out.const_data_ptr(),
                             grad_input.mutable_data_ptr()};
  run_slices(items, entries, workers, [&](int64_t begin, int64_t end, int worker) {
    LogSumExpBackwardTask part = task;
    part.begin = begin;
    part.end = end;
    part.workspace = workspace.of(worker);
    SUMPROD_KERNEL(logsumexp_backward_items)(part);
  });
  if (SUMPROD_KERNEL(logsumexp_any_infinite)(problem, task.result)) SUMPROD_KERNEL(logsumexp_backward_share)(task);
  return grad_input;
}

}  // namespace

void check_logsumexp_backward(const SliceInputs& in, const Tensor& grad, const Tensor& input, const Tensor& output) {
  STD_TORCH_CHECK(in.problem.type == SliceType::float32 || in.problem.type == SliceType::float64,
                  "sumprod::logsumexp_backward: the input must be float32 or float64");
  STD_TORCH_CHECK(grad.scalar_type() == input.scalar_type() && output.scalar_type() == input.scalar_type(),
                  "sumprod::logsumexp_backward: grad, input and output must have one dtype");
  STD_TORCH_CHECK(grad.numel() == in.problem.kept.count && output.numel() == in.problem.kept.count,
                  "sumprod::logsumexp_backward: grad and output must have ", in.problem.kept.count,
                  " elements, one per slice of the input, got ", grad.numel(), " and ", output.numel());
}

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("logsumexp(Tensor input, int[] dim, bool keepdim) -> Tensor");
  m.def("logsumexp_backward(Tensor grad, Tensor input, Tensor output, int[] dim) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) {
  m.impl("logsumexp", TORCH_BOX(&logsumexp));
  m.impl("logsumexp_backward", TORCH_BOX(&logsumexp_backward));
}

}  // namespace sumprod
