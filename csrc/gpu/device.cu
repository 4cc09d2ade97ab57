#include "gpu/device.h"

#include <map>
#include <mutex>

namespace sumprod::gpu {

namespace {

DeviceProperties ask(int device) {
#if defined(SUMPROD_EMULATED_GPU)
  (void)device;
  return emulation::properties();
#else
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor)};
#endif
}

}  // namespace

const DeviceProperties& properties_of(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceProperties> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) found = known.emplace(device, ask(device)).first;
  return found->second;
}

bool is_capturing(const Stream& stream) {
#if defined(SUMPROD_EMULATED_GPU)
  (void)stream;
  return false;
#else
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
#endif
}

void use_device(int device) {
#if defined(SUMPROD_EMULATED_GPU)
  (void)device;
#else
  check(cudaSetDevice(device), "cudaSetDevice");
#endif
}

}  // namespace sumprod::gpu
