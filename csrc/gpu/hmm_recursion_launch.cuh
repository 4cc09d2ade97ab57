// How the kernel of gpu/hmm_recursion.cuh is put on a stream.
#pragma once

#include "gpu/hmm_large.h"
#include "gpu/hmm_recursion.cuh"

namespace sumprod::gpu {

template <class A, int States, int Split, int Unroll>
__global__ void __launch_bounds__(ResidentRecursion<A, States, Split, Unroll>::kThreads)
    resident_recursion_kernel(HmmParts parts) {
  ResidentRecursion<A, States, Split, Unroll>(parts).run();
}

template <class A, int States, int Split, int Unroll>
void launch_resident(const HmmParts& parts, const Stream& stream) {
  using R = ResidentRecursion<A, States, Split, Unroll>;
  const LaunchShape shape{(parts.count() + R::kGroups - 1) / R::kGroups, R::kThreads,
                          typename R::Shared(nullptr).bytes};
  launch(resident_recursion_kernel<A, States, Split, Unroll>, shape, stream, parts);
}

// The group size by number of states.
template <class A>
void launch_resident_for(const HmmParts& parts, const Stream& stream) {
  constexpr int kUnroll = sizeof(typename A::Real) == 4 ? 8 : 4;
  const int64_t states = parts.recursion.problem.states;
  if (states <= 8) return launch_resident<A, 8, 1, kUnroll>(parts, stream);
  if (states <= 16) return launch_resident<A, 16, 1, kUnroll>(parts, stream);
  if (states <= 32) return launch_resident<A, 32, 1, kUnroll>(parts, stream);
  if (states <= 64) return launch_resident<A, 64, 2, kUnroll>(parts, stream);
  launch_resident<A, 128, 4, kUnroll>(parts, stream);
}

// Whole sequences, or the three phases of gpu/hmm_pieces.h.
template <class A>
void run_resident_recursion(const HmmRecursion& recursion, const Stream& stream) {
  const HmmProblem& problem = recursion.problem;
  const HmmDivision division =
      recursion.scratch == nullptr ? HmmDivision{problem.steps, 1, 1, 1} : divide_in_time(problem, stream);
  HmmParts parts = {};
  parts.recursion = recursion;
  parts.pieces.steps = division.steps;
  parts.pieces.count = division.pieces;
  if (division.pieces == 1) return launch_resident_for<A>(parts, stream);
  const HmmPieceMemory memory(problem, division, recursion.scratch);
  parts.pieces = memory.pieces;
  parts.transfer = true;
  launch_resident_for<A>(parts, stream);
  const bool forward = recursion.forward_messages != nullptr || recursion.forward_exponents != nullptr;
  const bool backward = recursion.backward && recursion.backward_messages != nullptr;
  carry_messages(
      {problem, division, memory, A::kMaxPlus, forward || backward, backward, recursion.total, recursion.redo}, stream);
  if (!forward && !backward) return;
  parts.transfer = false;
  parts.recursion.forward = forward;
  parts.recursion.backward = backward;
  launch_resident_for<A>(parts, stream);
}

// By number of states.
template <class A>
void run_recursion(const HmmRecursion& recursion, const Stream& stream) {
  if (recursion.problem.states > kMostResidentStates) return run_large_recursion<A>(recursion, stream);
  run_resident_recursion<A>(recursion, stream);
}

}  // namespace sumprod::gpu
