#include <limits>
#include <vector>

#include "ops/gpu_call.h"
#include "ops/logsumexp.h"
#include "ops/logsumexp_checks.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

Tensor logsumexp(const Tensor& input, std::vector<int64_t> dim, bool keepdim) {
  const SliceInputs in("logsumexp", input, dim);
  const GpuCall call(input);
  const bool half = in.problem.type == SliceType::float16 || in.problem.type == SliceType::bfloat16;
  const std::vector<int64_t> sizes = in.result_sizes(keepdim);
  Tensor result =
      torch::stable::new_empty(input, {sizes.data(), sizes.size()}, half ? ScalarType::Float : input.scalar_type());
  if (in.empty()) {
    torch::stable::fill_(result, -std::numeric_limits<double>::infinity());
  } else {
    LogSumExpCuda task{in.problem, nullptr, nullptr};
    Tensor scratch = call.scratch(logsumexp_cuda(task, call.stream()));
    task.result = result.mutable_data_ptr();
    task.scratch = scratch.mutable_data_ptr();
    logsumexp_cuda(task, call.stream());
  }
  return half ? torch::stable::to(result, input.scalar_type()) : result;
}

Tensor logsumexp_backward(const Tensor& grad, const Tensor& input, const Tensor& output, std::vector<int64_t> dim) {
  const GpuCall call(input);
  Tensor grad_input = torch::stable::empty_like(input);
  const SliceInputs in("logsumexp_backward", input, dim, &grad_input);
  check_logsumexp_backward(in, grad, input, output);
  if (in.empty()) return grad_input;
  const Tensor g = grad.is_contiguous() ? grad : torch::stable::contiguous(grad);
  const Tensor out = output.is_contiguous() ? output : torch::stable::contiguous(output);
  logsumexp_backward_cuda(in.problem, {g.const_data_ptr(), out.const_data_ptr(), grad_input.mutable_data_ptr()},
                          call.stream());
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) {
  m.impl("logsumexp", TORCH_BOX(&logsumexp));
  m.impl("logsumexp_backward", TORCH_BOX(&logsumexp_backward));
}

}  // namespace sumprod
