// One warp's part of the product of messages and matrix in gpu/hmm_cluster.cuh: kClusterColumns columns, all rows.
#pragma once

#include "gpu/hmm_cluster.h"
#include "gpu/hmm_trust.cuh"

namespace sumprod::gpu {

// The entries of one state for all sequences, or weights: read and written in one go.
template <class Real, int N>
struct alignas(N * sizeof(Real)) Pack {
  Real of[N];
};

template <class A, int Sequences, int Held>
class ClusterProduct {
 public:
  using Real = typename A::Real;
  static constexpr int kSequences = Sequences, kHeld = Held, kColumns = kClusterColumns;
  static constexpr int kOutputs = kColumns * kSequences;  // sums per warp
  static constexpr int kPacked = 16 / sizeof(Real);
  using Entries = Pack<Real, kSequences>;
  using Weights = Pack<Real, kPacked>;
  static_assert(kOutputs <= kWarp && kHeld % 4 == 0);

  static SUMPROD_BOTH int64_t packs_in_shared_memory(const HmmClusterShape& shape) {
    const int64_t rows = shape.rows > kHeld ? shape.rows - kHeld : 0;
    return rows * (kColumns / kPacked) * shape.warps * kWarp;
  }

  SUMPROD_DEVICE ClusterProduct(const HmmClusterShape& shape, Weights* shared)
      : lane_(lane_of_thread()), rows_(shape.rows), threads_(shape.warps * kWarp), shared_(shared + threadIdx.x) {}

  // Reads this lane's log potentials, and learns about them.
  SUMPROD_DEVICE TransitionSummary load(const HmmProblem& p, bool backward, int first_column) {
    TransitionSummary summary;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) weight_[k][c] = potential(p, backward, k, first_column + c, summary);
    }
    for (int k = kHeld; k < rows_; ++k) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        packed(k, c / kPacked).of[c % kPacked] = potential(p, backward, k, first_column + c, summary);
      }
    }
    return summary;
  }

  SUMPROD_DEVICE void exponentiate(Real shift) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) weight_[k][c] = A::weight(weight_[k][c], shift);
    }
    for (int k = kHeld; k < rows_; ++k) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        Real& x = packed(k, c / kPacked).of[c % kPacked];
        x = A::weight(x, shift);
      }
    }
  }

  // sum over i of message[i] * weight[i][column], of the column and the sequence that are this lane's.
  SUMPROD_DEVICE Real run(const Entries* message) const {
    Real sum[kOutputs];
#pragma unroll
    for (int n = 0; n < kOutputs; ++n) sum[n] = A::zero();
    message += lane_;
#pragma unroll
    for (int k = 0; k < kHeld; k += 4) {
      if (k < rows_) {
#pragma unroll
        for (int n = k; n < k + 4; ++n) add_row(sum, message[n * kWarp], weight_[n]);
      }
    }
#pragma unroll 2
    for (int k = kHeld; k < rows_; ++k) {
      Real weight[kColumns];
#pragma unroll
      for (int part = 0; part < kColumns / kPacked; ++part) {
        const Weights pack = packed(k, part);
#pragma unroll
        for (int n = 0; n < kPacked; ++n) weight[part * kPacked + n] = pack.of[n];
      }
      add_row(sum, message[k * kWarp], weight);
    }
    return reduce(sum);
  }

 private:
  SUMPROD_DEVICE static void add_row(Real (&sum)[kOutputs], const Entries entries, const Real (&weight)[kColumns]) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int q = 0; q < kSequences; ++q) {
        sum[c * kSequences + q] = A::accumulate(sum[c * kSequences + q], entries.of[q], weight[c]);
      }
    }
  }

  // Adds the sums of all lanes; lane l gets the l-th, and where there are fewer, so do the lanes after.
  SUMPROD_DEVICE Real reduce(Real (&sum)[kOutputs]) const {
    halve<kOutputs / 2>(sum);
    Real result = sum[0];
#pragma unroll
    for (int d = kOutputs; d < kWarp; d *= 2) result = A::merge(result, __shfl_xor_sync(kFullWarp, result, d));
    return result;
  }

  // Each of two lanes keeps half of the sums: a loop here would not be unrolled, and the sums not kept in registers.
  template <int Half>
  SUMPROD_DEVICE void halve(Real (&sum)[kOutputs]) const {
    const bool upper = (lane_ & Half) != 0;
#pragma unroll
    for (int n = 0; n < Half; ++n) {
      const Real given = upper ? sum[n] : sum[n + Half], kept = upper ? sum[n + Half] : sum[n];
      sum[n] = A::merge(kept, __shfl_xor_sync(kFullWarp, given, Half));
    }
    if constexpr (Half > 1) halve<Half / 2>(sum);
  }

  SUMPROD_DEVICE Real potential(const HmmProblem& p, bool backward, int k, int column,
                                TransitionSummary& summary) const {
    const int64_t i = k * kWarp + lane_, j = column;
    if (p.steps <= 1 || i >= p.states || j >= p.states) return -infinity<Real>();
    const int64_t from = backward ? p.transition_to : p.transition_from;
    const int64_t to = backward ? p.transition_from : p.transition_to;
    const Real x = static_cast<const Real*>(p.transition)[i * from + j * to];
    summary.add(x);
    return x;
  }

  // In shared memory: [row past kHeld][part][thread].
  SUMPROD_DEVICE Weights& packed(int row, int part) const {
    return shared_[((row - kHeld) * (kColumns / kPacked) + part) * threads_];
  }

  const int lane_, rows_, threads_;
  Weights* const shared_;
  Real weight_[kHeld][kColumns];
};

}  // namespace sumprod::gpu
