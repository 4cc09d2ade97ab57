#include "ops/gpu_call.h"

#include <algorithm>

#if !defined(SUMPROD_EMULATED_GPU)
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

namespace sumprod {

namespace {

#if defined(SUMPROD_EMULATED_GPU)

gpu::Stream current_stream(int) { return {nullptr, 0}; }

#else

// A function of a torch library that this process has loaded already, or null. Torch loads its CUDA libraries
// with RTLD_LOCAL, so that weak references to their symbols stay null; asking the library itself works.
void* torch_symbol(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  return handle == nullptr ? nullptr : dlsym(handle, name);
}

gpu::Stream current_stream(int device) {
  using NativeHandle = AOTITorchError (*)(StreamHandle, void**);
  using CudaStream = AOTITorchError (*)(int32_t, void**);
  static const auto native_handle =
      reinterpret_cast<NativeHandle>(torch_symbol("libtorch_cpu.so", "torch_stream_native_handle"));
  static const auto cuda_stream =
      reinterpret_cast<CudaStream>(torch_symbol("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (native_handle != nullptr) {  // torch 2.13 and newer
    StreamHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_stream(device, &handle));
    const AOTITorchError error = native_handle(handle, &stream);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_delete_stream(handle));
    STABLE_TORCH_ERROR_CODE_CHECK(error);
  } else {
    STD_TORCH_CHECK(cuda_stream != nullptr,
                    "sumprod: this torch has a CUDA tensor but no function that tells its current stream; "
                    "sumprod's CUDA kernels need torch >= 2.10 with CUDA");
    STABLE_TORCH_ERROR_CODE_CHECK(cuda_stream(device, &stream));
  }
  return {stream, device};
}

#endif

}  // namespace

GpuCall::GpuCall(const Tensor& tensor) : like_(tensor) {
#if defined(SUMPROD_EMULATED_GPU)
  stream_ = current_stream(0);
#else
  const int device = tensor.get_device_index();
  guard_.emplace(device);
  stream_ = current_stream(device);
#endif
  gpu::use_device(stream_.device);
}

Tensor GpuCall::scratch(int64_t bytes) const {
  return torch::stable::new_empty(like_, {std::max<int64_t>(bytes, 1)}, torch::headeronly::ScalarType::Byte);
}

}  // namespace sumprod
