#include "ops/maxmatmul.h"

#include <tuple>

#include "ops/matrices.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

std::tuple<Tensor, Tensor> maxmatmul(const Tensor& x, const Tensor& y) {
  const MatrixInputs in("maxmatmul", x, y);
  const ListedMatrices listed(in);
  const MatrixProblem& problem = listed.problem;
  in.require_short_inner("maxmatmul");
  Tensor values = in.matrices(x, problem.rows, problem.columns);
  const auto sizes = values.sizes();
  Tensor indices = torch::stable::new_empty(x, sizes, ScalarType::Long);
  const MaxMatmulTask task{&problem, 0, 0, nullptr, values.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>()};
  const auto kernel = SUMPROD_KERNEL(maxmatmul_tiles);
  run_tiles({problem.batch, problem.rows, problem.columns}, 2 * problem.inner, kernel(task),
            [&](int64_t begin, int64_t end, void* workspace) {
              kernel({&problem, begin, end, workspace, task.values, task.indices});
            });
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) { m.def("maxmatmul(Tensor x, Tensor y) -> (Tensor, Tensor)"); }
STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl("maxmatmul", TORCH_BOX(&maxmatmul)); }

}  // namespace sumprod
