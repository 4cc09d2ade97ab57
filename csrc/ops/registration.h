// The dispatch keys under which operators are registered:
//   STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CPU, m) { m.impl(...); }       in X.cpp
//   STABLE_TORCH_LIBRARY_IMPL(sumprod, SUMPROD_CUDA, m) { m.impl(...); }      in X_gpu.cpp
#pragma once

#include <torch/csrc/stable/library.h>

#if defined(SUMPROD_EMULATED_GPU)
// The kernels for GPUs serve tensors on the CPU, and those for the CPU are out of the way.
#define SUMPROD_CPU PrivateUse1
#define SUMPROD_CUDA CPU
#else
#define SUMPROD_CPU CPU
#define SUMPROD_CUDA CUDA
#endif
