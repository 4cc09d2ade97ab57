// The threads that carry one sequence of the resident HMM recursion (gpu/hmm_recursion.cuh): how they meet and agree.
#pragma once

#include "gpu/hmm_trust.cuh"

namespace sumprod::gpu {

// kSplit neighbouring lanes per state. A group is part of a warp and needs no block barrier, or it is a block.
template <int States, int Split>
class HmmGroup {
 public:
  static constexpr int kStates = States, kSplit = Split;
  static constexpr int kSize = kStates * kSplit;
  static constexpr bool kInWarp = kSize <= kWarp;
  static constexpr int kThreads = kSize < 128 ? 128 : kSize;  // of a block
  static constexpr int kGroups = kThreads / kSize;            // in a block
  static constexpr int kWarps = kInWarp ? 1 : kSize / kWarp;  // in a group
  static constexpr int kReductions = kThreads / kWarp;        // entries of memory that a block needs
  static_assert(kInWarp || kGroups == 1);

  SUMPROD_DEVICE explicit HmmGroup(double* reductions) : reductions_(reductions) {}

  SUMPROD_DEVICE void meet() const {
    if constexpr (kInWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // The rest is for all threads of the block at once.

  SUMPROD_DEVICE double max(double x) const {
    if constexpr (kInWarp) {
      return warp_max(x, kSize);
    } else {
      share(warp_max(x));
      for (int w = 0; w < kWarps; ++w) x = reductions_[w] > x ? reductions_[w] : x;
      return x;
    }
  }

  // The largest number, or 0 where all are -inf.
  template <class Real>
  SUMPROD_DEVICE Real top(Real x) const {
    if constexpr (kInWarp) {
      return or_zero(warp_max(x, kSize));
    } else {
      return or_zero(Real(max(double(x))));
    }
  }

  template <class A>
  SUMPROD_DEVICE typename A::Real merge(typename A::Real x) const {
    for (int d = (kInWarp ? kSize : kWarp) / 2; d > 0; d /= 2) x = A::merge(x, __shfl_xor_sync(kFullWarp, x, d));
    if constexpr (!kInWarp) {
      using Real = typename A::Real;
      share(double(x));
      x = Real(reductions_[0]);
      for (int w = 1; w < kWarps; ++w) x = A::merge(x, Real(reductions_[w]));
    }
    return x;
  }

  SUMPROD_DEVICE bool any(bool x) const {
    if constexpr (kInWarp) {
      const unsigned group = kSize == kWarp ? kFullWarp : (1u << kSize % kWarp) - 1u;
      return (__ballot_sync(kFullWarp, x) >> (lane_of_thread() / kSize * kSize) & group) != 0;
    } else {
      return __syncthreads_or(x) != 0;
    }
  }

  SUMPROD_DEVICE TransitionSummary of_all(TransitionSummary summary) const {
    summary.highest = max(summary.highest);
    summary.lowest = -max(-summary.lowest);
    summary.zero = any(summary.zero);
    summary.invalid = any(summary.invalid);
    return summary;
  }

 private:
  // One number of every warp, for all of them.
  SUMPROD_DEVICE void share(double x) const {
    __syncthreads();
    if (lane_of_thread() == 0) reductions_[warp_of_thread()] = x;
    __syncthreads();
  }

  double* reductions_;
};

}  // namespace sumprod::gpu
