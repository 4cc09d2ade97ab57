// How the kernel of gpu/hmm_cluster.cuh is put on a stream.
#pragma once

#include "gpu/hmm_cluster.cuh"

namespace sumprod::gpu {

template <class A, int Sequences, int Held, int Threads>
__global__ void __launch_bounds__(Threads, 1) cluster_recursion_kernel(HmmRecursion args, HmmClusterShape shape) {
#if defined(SUMPROD_EMULATED_GPU) || __CUDA_ARCH__ >= 900
  ClusterRecursion<A, Sequences, Held>(args, shape).run();
#endif
}

template <class A, int Sequences, int Held, int Threads>
void launch_cluster(const HmmRecursion& args, const HmmClusterShape& shape, const Stream& stream) {
  using R = ClusterRecursion<A, Sequences, Held>;
  const int64_t groups = (args.problem.batch + Sequences - 1) / Sequences;
  const int64_t clusters = groups * (int(args.forward) + int(args.backward));
  const LaunchShape launch_shape{clusters * shape.blocks, shape.warps * kWarp, typename R::Shared(nullptr, shape).bytes,
                                 shape.blocks};
  launch(cluster_recursion_kernel<A, Sequences, Held, Threads>, launch_shape, stream, args, shape);
}

// By number of states, for one sequence or several at a time.
template <class A, int Sequences>
void launch_cluster_for(const HmmRecursion& args, const HmmClusterShape& shape, const Stream& stream) {
  if constexpr (sizeof(typename A::Real) == 8) {
    launch_cluster<A, Sequences, 8, 256>(args, shape, stream);
  } else if (shape.rows > 8 && shape.rows <= 16) {
    launch_cluster<A, Sequences, 16, 256>(args, shape, stream);
  } else {
    launch_cluster<A, Sequences, 8, 384>(args, shape, stream);
  }
}

template <class A>
void launch_on_cluster(const HmmRecursion& args, const Stream& stream) {
  constexpr int kTogether = 16 / sizeof(typename A::Real);
  const int64_t states = args.problem.states, passes = args.problem.batch * (int(args.forward) + int(args.backward));
  const int64_t at_once = properties_of(stream.device).multiprocessors / kMostClusterBlocks;
  const bool alone = passes <= at_once;
  const int64_t clusters = alone ? passes : (passes + kTogether - 1) / kTogether;
  const bool half = states <= kMostHalfClusterStates && clusters > at_once;
  const HmmClusterShape shape = cluster_shape(states, half ? kMostClusterBlocks / 2 : kMostClusterBlocks);
  if (alone) return launch_cluster_for<A, 1>(args, shape, stream);
  launch_cluster_for<A, kTogether>(args, shape, stream);
}

}  // namespace sumprod::gpu
