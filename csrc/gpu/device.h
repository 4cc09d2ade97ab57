// What the CUDA kernels are written in: CUDA itself, or, for tests on machines without a GPU, the same
// vocabulary emulated on the CPU (gpu/emulation.h). Included by .cu files and by what they include.
//
// Kernels keep to a part of CUDA that both provide:
//   * shared memory is dynamic only (shared_memory(), carved by SharedArena), so that its size is known
//     where the kernel is launched;
//   * blocks are whole warps, and warp functions are called by all 32 lanes, with kFullWarp;
//   * no thread returns while others of its block still meet at a barrier;
//   * no torch header, no exceptions, no allocation in device code.
#pragma once

#include <stdint.h>

#include "gpu/stream.h"

#if defined(SUMPROD_EMULATED_GPU)
#include "gpu/emulation.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>
#endif

namespace sumprod::gpu {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

#define SUMPROD_DEVICE __device__ __forceinline__
#define SUMPROD_BOTH __host__ __device__ __forceinline__

struct LaunchShape {
  int64_t blocks;
  int threads;               // per block; a multiple of 32
  int64_t shared_bytes = 0;  // of dynamic shared memory per block
  int cluster = 1;           // neighbouring blocks that see each other's shared memory
};

// The most blocks that a grid may have along x.
constexpr int64_t kMostBlocks = 2147483647;

// ---- inside kernels -----------------------------------------------------------------------------

SUMPROD_DEVICE int lane_of_thread() { return int(threadIdx.x) % kWarp; }
SUMPROD_DEVICE int warp_of_thread() { return int(threadIdx.x) / kWarp; }

// The block's dynamic shared memory, 16-byte aligned. Its first content is arbitrary.
SUMPROD_DEVICE unsigned char* shared_memory() {
#if defined(SUMPROD_EMULATED_GPU)
  return emulation::shared_memory();
#else
  extern __shared__ __align__(16) unsigned char sumprod_shared[];
  return sumprod_shared;
#endif
}

// Cuts memory into arrays, each aligned to 16 bytes. With a null base it only counts, so that host and
// kernel agree on the size by running the same code.
class SharedArena {
 public:
  SUMPROD_BOTH explicit SharedArena(unsigned char* base) : base_(base) {}
  template <class T>
  SUMPROD_BOTH T* take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
#if !defined(__CUDA_ARCH__)
    if (base_ == nullptr) return nullptr;  // not in kernels: a choice would hide that the memory is shared
#endif
    return reinterpret_cast<T*>(base_ + at);
  }
  SUMPROD_BOTH int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

// A byte that any thread of a grid may set at any time, and others read meanwhile: which of them see it set is open.
SUMPROD_DEVICE void raise_flag(uint8_t* flag) {
#if defined(SUMPROD_EMULATED_GPU)
  __atomic_store_n(flag, uint8_t(1), __ATOMIC_RELAXED);
#else
  *static_cast<volatile uint8_t*>(flag) = 1;
#endif
}
SUMPROD_DEVICE bool flag_raised(const uint8_t* flag) {
#if defined(SUMPROD_EMULATED_GPU)
  return __atomic_load_n(flag, __ATOMIC_RELAXED) != 0;
#else
  return *static_cast<const volatile uint8_t*>(flag) != 0;
#endif
}

// Reductions over the lanes of a warp (or over aligned groups of `width` lanes); every lane gets the result.
template <class T>
SUMPROD_DEVICE T warp_sum(T x, int width = kWarp) {
  for (int d = width / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}
// NaN is taken for the smaller one.
template <class T>
SUMPROD_DEVICE T warp_max(T x, int width = kWarp) {
  for (int d = width / 2; d > 0; d /= 2) {
    const T y = __shfl_xor_sync(kFullWarp, x, d);
    x = y > x ? y : x;
  }
  return x;
}

// Blocks of a cluster. A kernel that uses these is launched with LaunchShape::cluster > 1 and runs on
// compute capability 9.0 and newer.
#if defined(SUMPROD_EMULATED_GPU)
SUMPROD_DEVICE int cluster_rank() { return emulation::cluster_rank(); }
SUMPROD_DEVICE void cluster_arrive() { emulation::cluster_arrive(); }
SUMPROD_DEVICE void cluster_wait() { emulation::cluster_wait(); }
template <class T>
SUMPROD_DEVICE T* cluster_shared(T* own, int rank) {
  return static_cast<T*>(emulation::cluster_shared(own, rank));
}
#else
SUMPROD_DEVICE int cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return int(rank);
}
SUMPROD_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
#endif
}
SUMPROD_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// Where block `rank` of the cluster has what this block has at `own`, in shared memory.
template <class T>
SUMPROD_DEVICE T* cluster_shared(T* own, int rank) {
  T* other = own;
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(other) : "l"(own), "r"(rank));
#endif
  return other;
}
#endif
// Orders shared memory among all threads of the cluster, as __syncthreads() does in a block: what was written before
// cluster_arrive() is seen after cluster_wait(). Between the two, only what the others neither read nor write.
SUMPROD_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// ---- on the host --------------------------------------------------------------------------------

#if defined(SUMPROD_EMULATED_GPU)

inline void upload(void* to, const void* from, int64_t bytes, const Stream&) {
  __builtin_memcpy(to, from, static_cast<size_t>(bytes));
}
inline void clear(void* to, int64_t bytes, const Stream&) { __builtin_memset(to, 0, static_cast<size_t>(bytes)); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, const Stream&, Arguments... arguments) {
  emulation::run_grid(shape.blocks, shape.threads, shape.shared_bytes, shape.cluster,
                      [&] { kernel(static_cast<Parameters>(arguments)...); });
}

#else

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("sumprod: CUDA error in ") + what + ": " + cudaGetErrorString(error));
}

// `from` is ordinary host memory: it has been read when this returns, except under graph capture.
inline void upload(void* to, const void* from, int64_t bytes, const Stream& stream) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                        static_cast<cudaStream_t>(stream.handle)),
        "a copy to the device");
}
inline void clear(void* to, int64_t bytes, const Stream& stream) {
  check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream.handle)), "a fill");
}

// Puts a kernel on the stream. Errors of the launch itself (no device code for this GPU, too much shared
// memory) are thrown; errors while it runs show later, as with every CUDA program.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, const Stream& stream, Arguments... arguments) {
  if (shape.blocks == 0) return;
  if (shape.blocks > kMostBlocks) throw std::runtime_error("sumprod: a CUDA grid may have at most 2^31 - 1 blocks");
  constexpr int64_t kStaticLimit = 48 * 1024;
  if (shape.shared_bytes > kStaticLimit) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.handle);
  cudaLaunchAttribute attribute = {};
  if (shape.cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "a kernel launch");
}

#endif

}  // namespace sumprod::gpu
