#include "ops/logmatmulexp.h"

#include <tuple>
#include <vector>

#include "ops/matrices.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

Tensor logmatmulexp(const Tensor& x, const Tensor& y) {
  const MatrixInputs in("logmatmulexp", x, y);
  const ListedMatrices listed(in);
  const MatrixProblem& problem = listed.problem;
  Tensor out = in.matrices(x, problem.rows, problem.columns);
  const LogMatmulExpTask task{&problem, 0, 0, nullptr, out.mutable_data_ptr()};
  const auto kernel = SUMPROD_KERNEL(logmatmulexp_tiles);
  run_tiles({problem.batch, problem.rows, problem.columns}, problem.inner, kernel(task),
            [&](int64_t begin, int64_t end, void* workspace) { kernel({&problem, begin, end, workspace, task.out}); });
  return out;
}

std::tuple<Tensor, Tensor> logmatmulexp_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                 const Tensor& out) {
  const MatrixInputs in("logmatmulexp_backward", x, y);
  const ListedMatrices listed(in);
  const MatrixProblem& problem = listed.problem;
  const int64_t elements = problem.batch * problem.rows * problem.columns;
  const Tensor g = in.product_argument("logmatmulexp_backward", "grad", grad);
  const Tensor value = in.product_argument("logmatmulexp_backward", "out", out);
  Tensor grad_x = in.matrices(x, problem.rows, problem.inner), grad_y = in.matrices(y, problem.inner, problem.columns);
  if (elements == 0) {
    torch::stable::zero_(grad_x);
    torch::stable::zero_(grad_y);
    return {grad_x, grad_y};
  }
  Tensor scaled = in.matrices(x, problem.rows, problem.columns);
  constexpr int64_t kPadding = 64;
  Tensor row_top = torch::stable::new_zeros(x, {problem.batch * problem.rows + kPadding});
  Tensor column_top = torch::stable::new_zeros(x, {problem.batch * problem.columns + kPadding});
  const TileGrid grid{problem.batch, problem.rows, problem.columns};
  std::vector<unsigned char> exact(static_cast<size_t>(grid.count()));

  const LogMatmulExpBackwardTask task{&problem,
                                      0,
                                      0,
                                      nullptr,
                                      g.const_data_ptr(),
                                      value.const_data_ptr(),
                                      scaled.mutable_data_ptr(),
                                      row_top.mutable_data_ptr(),
                                      column_top.mutable_data_ptr(),
                                      exact.data(),
                                      grad_x.mutable_data_ptr(),
                                      grad_y.mutable_data_ptr()};
  const auto run = [&](const TileGrid& tiles, int64_t depth, int64_t (*kernel)(const LogMatmulExpBackwardTask&)) {
    run_tiles(tiles, depth, kernel(task), [&](int64_t begin, int64_t end, void* workspace) {
      LogMatmulExpBackwardTask part = task;
      part.begin = begin;
      part.end = end;
      part.workspace = workspace;
      kernel(part);
    });
  };
  run(grid, problem.inner, SUMPROD_KERNEL(logmatmulexp_scale_tiles));
  run({problem.batch, problem.rows, problem.inner}, problem.columns, SUMPROD_KERNEL(logmatmulexp_grad_x_tiles));
  run({problem.batch, problem.inner, problem.columns}, problem.rows, SUMPROD_KERNEL(logmatmulexp_grad_y_tiles));
  return {grad_x, grad_y};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) {
  m.def("logmatmulexp(Tensor x, Tensor y) -> Tensor");
  m.def("logmatmulexp_backward(Tensor grad, Tensor x, Tensor y, Tensor out) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) {
  m.impl("logmatmulexp", TORCH_BOX(&logmatmulexp));
  m.impl("logmatmulexp_backward", TORCH_BOX(&logmatmulexp_backward));
}

}  // namespace sumprod
