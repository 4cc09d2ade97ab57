// How the HMM recursion for large numbers of states is laid out on a cluster of blocks (gpu/hmm_cluster.cuh).
#pragma once

#include "gpu/device.h"
#include "gpu/hmm_large.h"

namespace sumprod::gpu {

constexpr int kClusterColumns = 8;  // of the matrix, per warp

// Estimated; to be measured on a GPU. Half a cluster leaves fewer idle where there are many sequences.
constexpr int kMostClusterBlocks = 8;  // any GPU with clusters has room for 8
constexpr int64_t kMostHalfClusterStates = 256;
// What the registers and shared memory of a whole cluster hold.
constexpr int64_t kMostClusterStatesFloat = 768, kMostClusterStatesDouble = 512;
constexpr int64_t kClusterSharedBytes = 227 * 1024;
constexpr int kMostClusterWarps = 12;  // of a block
constexpr int kMostRowsPerWarp = 3;    // rows / warps, rounded up, in every shape of more than 128 states

struct HmmClusterShape {
  int blocks;  // of the cluster
  int warps;   // of a block
  int rows;    // of the matrix, per lane: a multiple of 4
};

// The shape for a number of states: columns in even parts over the blocks.
inline HmmClusterShape cluster_shape(int64_t states, int blocks) {
  const int64_t columns = kClusterColumns * blocks, rows = (states + kWarp - 1) / kWarp;
  return {blocks, int((states + columns - 1) / columns), int((rows + 3) / 4 * 4)};
}

}  // namespace sumprod::gpu
