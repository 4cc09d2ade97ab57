#include <limits>
#include <tuple>
#include <vector>

#include "ops/gpu_call.h"
#include "ops/normalize_weights.h"
#include "ops/registration.h"
#include "ops/slices.h"

namespace sumprod {

namespace {

std::tuple<Tensor, Tensor, Tensor> normalize_weights(const Tensor& log_weights, int64_t dim) {
  const GpuCall call(log_weights);
  Tensor normalised = torch::stable::empty_like(log_weights);
  const SliceInputs in("normalize_weights", log_weights, {dim}, &normalised);
  STD_TORCH_CHECK(in.problem.type == SliceType::float32 || in.problem.type == SliceType::float64,
                  "sumprod::normalize_weights: log_weights must be float32 or float64");
  const std::vector<int64_t> sizes = in.result_sizes(false);
  Tensor evidence = torch::stable::new_empty(log_weights, {sizes.data(), sizes.size()});
  Tensor ess = torch::stable::new_empty(log_weights, {sizes.data(), sizes.size()});
  if (in.empty()) {
    torch::stable::fill_(evidence, -std::numeric_limits<double>::infinity());
    torch::stable::fill_(ess, 0.0);
    return {normalised, evidence, ess};
  }
  const NormalizeWeightsCuda task{
      normalised.mutable_data_ptr(), evidence.mutable_data_ptr(), ess.mutable_data_ptr(), nullptr, nullptr, nullptr};
  Tensor scratch = call.scratch(normalize_weights_cuda(in.problem, task, nullptr, call.stream()));
  normalize_weights_cuda(in.problem, task, scratch.mutable_data_ptr(), call.stream());
  return {normalised, evidence, ess};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) { m.impl("normalize_weights", TORCH_BOX(&normalize_weights)); }

}  // namespace sumprod
