#include "ops/maxmatmul.h"

#include <tuple>

#include "ops/gpu_call.h"
#include "ops/matrices.h"
#include "ops/registration.h"

namespace sumprod {

namespace {

std::tuple<Tensor, Tensor> maxmatmul(const Tensor& x, const Tensor& y) {
  const MatrixInputs in("maxmatmul", x, y);
  in.require_short_inner("maxmatmul");
  const GpuCall call(x);
  Tensor values = in.matrices(x, in.problem.rows, in.problem.columns);
  const auto sizes = values.sizes();
  Tensor indices = torch::stable::new_empty(x, sizes, torch::headeronly::ScalarType::Long);
  if (values.numel() == 0) return {values, indices};
  maxmatmul_cuda({in.problem, in.batch, values.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>()}, call.stream());
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) { m.impl("maxmatmul", TORCH_BOX(&maxmatmul)); }

}  // namespace sumprod
