// Kernels with and without mistakes, for test_emulation.py: the first argument names the case.
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "gpu/device.h"

namespace {

using sumprod::gpu::kFullWarp;

// out[i] = in[i + 1], through shared memory.
template <class Barrier>
SUMPROD_DEVICE void rotate(const float* in, float* out, Barrier barrier) {
  auto* shared = reinterpret_cast<float*>(sumprod::gpu::shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x, first = blockIdx.x * n;
  shared[i] = in[first + i];
  barrier();
  out[first + i] = shared[(i + 1) % n];
}

__global__ void with_barrier(const float* in, float* out) {
  rotate(in, out, [] { __syncthreads(); });
}
__global__ void with_warp_barrier(const float* in, float* out) {
  rotate(in, out, [] { __syncwarp(); });
}
__global__ void with_shuffle(const float* in, float* out) {
  rotate(in, out, [] { __shfl_sync(kFullWarp, 0, 0); });
}
__global__ void without_barrier(const float* in, float* out) {
  rotate(in, out, [] {});
}

__global__ void overlapping_blocks(const float*, float* out) { out[threadIdx.x] = float(blockIdx.x); }

__global__ void unfilled(const float*, float* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = reinterpret_cast<float*>(sumprod::gpu::shared_memory())[threadIdx.x];
}

__global__ void half_a_block(const float*, float*) {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void half_a_warp(const float*, float*) {
  if (threadIdx.x % 32 < 16) __syncwarp();
}
__global__ void two_meetings(const float*, float*) {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __shfl_sync(kFullWarp, 0, 0);
  }
}
__global__ void two_places(const float*, float*) {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}
__global__ void beyond_shared_memory(const float*, float*) { sumprod::gpu::shared_memory()[64 * sizeof(float)] = 1; }

// Every block reads what its neighbour in the cluster has written before `arrive` or after it.
template <bool kBefore>
__global__ void cluster_neighbour(const float* in, float* out) {
  auto* shared = reinterpret_cast<float*>(sumprod::gpu::shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x;
  if (kBefore) shared[i] = in[blockIdx.x * n + i];
  sumprod::gpu::cluster_arrive();
  if (!kBefore) shared[i] = in[blockIdx.x * n + i];
  sumprod::gpu::cluster_wait();
  out[blockIdx.x * n + i] = sumprod::gpu::cluster_shared(shared, 1 - sumprod::gpu::cluster_rank())[i];
  sumprod::gpu::cluster_sync();  // nobody leaves while its memory is read
}

struct Case {
  const char* name;
  void (*kernel)(const float*, float*);
  int threads = 64, cluster = 1;
};

const Case kCases[] = {
    {"with_barrier", with_barrier},
    {"with_warp_barrier", with_warp_barrier, 32},
    {"two_warps_with_warp_barriers", with_warp_barrier},
    {"with_shuffle", with_shuffle, 32},
    {"without_barrier", without_barrier},
    {"overlapping_blocks", overlapping_blocks},
    {"unfilled", unfilled},
    {"half_a_block", half_a_block},
    {"half_a_warp", half_a_warp},
    {"two_meetings", two_meetings},
    {"two_places", two_places},
    {"beyond_shared_memory", beyond_shared_memory},
    {"cluster_before_arrival", cluster_neighbour<true>, 64, 2},
    {"cluster_after_arrival", cluster_neighbour<false>, 64, 2},
};

}  // namespace

// Prints what the kernel has written.
int main(int count, char** arguments) {
  for (const Case& one : kCases) {
    if (count != 2 || strcmp(arguments[1], one.name) != 0) continue;
    constexpr int kBlocks = 4;
    std::vector<float> in, out(size_t(kBlocks * one.threads), -1.0f);
    for (int i = 0; i < kBlocks * one.threads; ++i) in.push_back(float(i));
    sumprod::gpu::launch(one.kernel, {kBlocks, one.threads, one.threads * int64_t(sizeof(float)), one.cluster}, {},
                         in.data(), out.data());
    for (float x : out) printf("%g ", double(x));
    return 0;
  }
  fprintf(stderr, "no such case\n");
  return 2;
}
