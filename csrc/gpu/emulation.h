// The part of CUDA that sumprod's kernels use, on the CPU: so that the kernels themselves, compiled as C++,
// pass the same tests as the CPU operators on machines without a GPU. For tests only; never in a wheel.
//
// Every thread of a block is a fiber, and runs until it meets a barrier or a warp function; a block (or
// cluster) is done before the next begins. Stricter than a GPU: a warp function that is not met by all 32
// lanes, or by some in another line of the code, a thread that leaves while others wait, two kinds of barrier met at
// once, and a barrier that some threads never reach end the process with a message. Shared memory starts as NaN, and
// the address sanitizer sees where it ends. SUMPROD_EMULATED_ORDER chooses in which order threads run between barriers
// (forward, backward, or a seed): results that depend on it show a missing barrier. The thread sanitizer sees every
// missing one between the threads of a block, whatever the results.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <cmath>
#include <functional>
#include <source_location>
#include <type_traits>

#include "gpu/stream.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

namespace sumprod::gpu::emulation {

struct Index {
  unsigned x, y, z;
};

// What one thread sees of itself.
struct ThreadState {
  Index thread, block, block_size, grid_size;
};
ThreadState& current();

// Where a thread calls a barrier or a warp function. To be met, lanes of a warp have to come to the same place.
using Place = std::source_location;

enum class Meeting { none, sync_warp, shuffle, vote, sync_block, vote_block, sync_cluster };

// Waits until all lanes of the warp are here, each with up to 8 bytes; returns all 32 values.
const uint64_t* meet_warp(Meeting kind, uint64_t value, const Place& place);
// Waits for all threads of the block; returns how many came with `vote`.
int meet_block(Meeting kind, bool vote, const Place& place);

unsigned char* shared_memory();
int cluster_rank();
void cluster_arrive();
void cluster_wait(const Place& place = Place::current());
void* cluster_shared(void* own, int rank);
DeviceProperties properties();

void run_grid(int64_t blocks, int threads, int64_t shared_bytes, int cluster, const std::function<void()>& kernel);

template <class T>
uint64_t to_bits(T x) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T x;
  memcpy(&x, &bits, sizeof(T));
  return x;
}

void require_full_warp(unsigned mask);

inline int own_lane() { return int(current().thread.x % 32); }

template <class T>
T shuffle(unsigned mask, T x, int from, bool valid, const Place& place) {
  require_full_warp(mask);
  const uint64_t* all = meet_warp(Meeting::shuffle, to_bits(x), place);
  return valid ? from_bits<T>(all[from]) : x;
}

template <class F>
auto fold(unsigned mask, unsigned x, const Place& place, F f) {
  require_full_warp(mask);
  const uint64_t* all = meet_warp(Meeting::vote, x, place);
  unsigned result = static_cast<unsigned>(all[0]);
  for (int l = 1; l < 32; ++l) result = f(result, static_cast<unsigned>(all[l]));
  return result;
}

}  // namespace sumprod::gpu::emulation

#define threadIdx (::sumprod::gpu::emulation::current().thread)
#define blockIdx (::sumprod::gpu::emulation::current().block)
#define blockDim (::sumprod::gpu::emulation::current().block_size)
#define gridDim (::sumprod::gpu::emulation::current().grid_size)

// ---- vector types

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- warps and blocks

#define SUMPROD_PLACE ::sumprod::gpu::emulation::Place place = ::sumprod::gpu::emulation::Place::current()

template <class T>
T __shfl_sync(unsigned mask, T x, int lane, int width = 32, SUMPROD_PLACE) {
  const int base = ::sumprod::gpu::emulation::own_lane() / width * width;
  return ::sumprod::gpu::emulation::shuffle(mask, x, base + (lane & (width - 1)), true, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, SUMPROD_PLACE) {
  const int own = ::sumprod::gpu::emulation::own_lane(), from = own ^ bits;
  return ::sumprod::gpu::emulation::shuffle(mask, x, from & 31, from < own / width * width + width, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, int distance, int width = 32, SUMPROD_PLACE) {
  const int own = ::sumprod::gpu::emulation::own_lane(), from = own - distance;
  return ::sumprod::gpu::emulation::shuffle(mask, x, from & 31, from >= own / width * width, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, int distance, int width = 32, SUMPROD_PLACE) {
  const int own = ::sumprod::gpu::emulation::own_lane(), from = own + distance;
  return ::sumprod::gpu::emulation::shuffle(mask, x, from & 31, from < own / width * width + width, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SUMPROD_PLACE) {
  const int lane = ::sumprod::gpu::emulation::own_lane();
  return ::sumprod::gpu::emulation::fold(mask, predicate != 0 ? 1u << lane : 0u, place,
                                         [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, SUMPROD_PLACE) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SUMPROD_PLACE) {
  return __ballot_sync(mask, predicate, place) == 0xffffffffu;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned x, SUMPROD_PLACE) {
  return ::sumprod::gpu::emulation::fold(mask, x, place, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned x, SUMPROD_PLACE) {
  return ::sumprod::gpu::emulation::fold(mask, x, place, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned x, SUMPROD_PLACE) {
  return ::sumprod::gpu::emulation::fold(mask, x, place, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned x, SUMPROD_PLACE) {
  return ::sumprod::gpu::emulation::fold(mask, x, place, [](unsigned a, unsigned b) { return a | b; });
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SUMPROD_PLACE) {
  ::sumprod::gpu::emulation::require_full_warp(mask);
  ::sumprod::gpu::emulation::meet_warp(::sumprod::gpu::emulation::Meeting::sync_warp, 0, place);
}
inline void __syncthreads(SUMPROD_PLACE) {
  ::sumprod::gpu::emulation::meet_block(::sumprod::gpu::emulation::Meeting::sync_block, false, place);
}
inline int __syncthreads_count(int predicate, SUMPROD_PLACE) {
  return ::sumprod::gpu::emulation::meet_block(::sumprod::gpu::emulation::Meeting::vote_block, predicate != 0, place);
}
inline int __syncthreads_or(int predicate, SUMPROD_PLACE) { return __syncthreads_count(predicate, place) > 0; }
inline int __syncthreads_and(int predicate, SUMPROD_PLACE) {
  return __syncthreads_count(predicate, place) == int(blockDim.x * blockDim.y * blockDim.z);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
#undef SUMPROD_PLACE

// ---- memory

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> x) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (x > old && !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

// ---- bits and numbers

inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
