// Checks that the CPU and the GPU half of logsumexp share.
#pragma once

#include "ops/slices.h"

namespace sumprod {

void check_logsumexp_backward(const SliceInputs& in, const Tensor& grad, const Tensor& input, const Tensor& output);

}  // namespace sumprod
