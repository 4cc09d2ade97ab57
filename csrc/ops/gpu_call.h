// What an operator needs to put kernels on the GPU that its tensors are on.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "gpu/stream.h"

namespace sumprod {

using torch::stable::Tensor;

// For the time of one operator call: the tensor's device is current, for torch and for our own CUDA runtime;
// kernels go to stream(), the caller's current one.
class GpuCall {
 public:
  explicit GpuCall(const Tensor& tensor);
  GpuCall(const GpuCall&) = delete;

  const gpu::Stream& stream() const { return stream_; }
  const gpu::DeviceProperties& properties() const { return gpu::properties_of(stream_.device); }

  // Scratch memory from torch's allocator, not initialised, at least 256-byte aligned. It may be given back
  // (the tensor destroyed) as soon as the kernels that use it are on the stream.
  Tensor scratch(int64_t bytes) const;

 private:
  const Tensor& like_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  gpu::Stream stream_;
};

}  // namespace sumprod
