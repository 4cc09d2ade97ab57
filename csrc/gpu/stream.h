// Where GPU work goes. Known to files that see torch and to files that see CUDA.
#pragma once

#include <stdint.h>

namespace sumprod::gpu {

struct Stream {
  void* handle;  // a cudaStream_t
  int device;
};

// What choices of algorithm depend on.
struct DeviceProperties {
  int multiprocessors;
  int64_t shared_bytes;    // that one block may have
  int compute_capability;  // 90 for 9.0
};

// Asked once per device.
const DeviceProperties& properties_of(int device);

// Whether what is put on the stream goes into a CUDA graph, to run later.
bool is_capturing(const Stream& stream);

// Makes `device` current for this library's own CUDA runtime, which is not torch's.
void use_device(int device);

}  // namespace sumprod::gpu
