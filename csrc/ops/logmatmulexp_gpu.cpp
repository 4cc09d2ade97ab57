#include "ops/logmatmulexp.h"

#include <tuple>

#include "ops/gpu_call.h"
#include "ops/matrices.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

// Memory for the maxima of rows of x and columns of y.
Tensor tops_of(const GpuCall& call, const MatrixInputs& in) {
  const MatrixProblem& problem = in.problem;
  const int64_t count = in.batch.x.distinct * problem.rows + in.batch.y.distinct * problem.columns;
  return call.scratch(count * (problem.is_double ? 8 : 4));
}

Tensor logmatmulexp(const Tensor& x, const Tensor& y) {
  const MatrixInputs in("logmatmulexp", x, y);
  const GpuCall call(x);
  Tensor out = in.matrices(x, in.problem.rows, in.problem.columns);
  if (out.numel() == 0) return out;
  Tensor tops = tops_of(call, in);
  logmatmulexp_cuda({in.problem, in.batch, tops.mutable_data_ptr(), out.mutable_data_ptr()}, call.stream());
  return out;
}

std::tuple<Tensor, Tensor> logmatmulexp_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                 const Tensor& out) {
  const MatrixInputs in("logmatmulexp_backward", x, y);
  const MatrixProblem& problem = in.problem;
  const GpuCall call(x);
  const Tensor g = in.product_argument("logmatmulexp_backward", "grad", grad);
  const Tensor value = in.product_argument("logmatmulexp_backward", "out", out);
  Tensor grad_x = in.matrices(x, problem.rows, problem.inner), grad_y = in.matrices(y, problem.inner, problem.columns);
  if (g.numel() == 0) {
    torch::stable::zero_(grad_x);
    torch::stable::zero_(grad_y);
    return {grad_x, grad_y};
  }
  Tensor scaled = in.matrices(x, problem.rows, problem.columns), tops = tops_of(call, in);
  logmatmulexp_backward_cuda({problem, in.batch, tops.mutable_data_ptr(), g.const_data_ptr(), value.const_data_ptr(),
                              scaled.mutable_data_ptr(), grad_x.mutable_data_ptr(), grad_y.mutable_data_ptr()},
                             call.stream());
  return {grad_x, grad_y};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) {
  m.impl("logmatmulexp", TORCH_BOX(&logmatmulexp));
  m.impl("logmatmulexp_backward", TORCH_BOX(&logmatmulexp_backward));
}

}  // namespace sumprod
