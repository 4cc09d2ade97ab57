// Slices of strided tensors (core/slices.h) on a GPU: who reads what, and log-sum-exp over a slice.
//
// A block has 256 threads, in teams. Where entries of a slice lie side by side, a team is neighbouring threads: part of
// a warp for short slices, the block for long ones. Where neighbouring slices lie side by side, neighbouring threads
// have neighbouring slices, and the team of a slice is spread over the block. Slices that are long while they are few
// are cut into chunks, whose partial results a second kernel combines.
#pragma once

#include "core/slices.h"
#include "gpu/device.h"
#include "gpu/numbers.cuh"

namespace sumprod::gpu {

constexpr int kLogSliceThreads = 8, kSliceThreads = 1 << kLogSliceThreads;

struct SliceTeams {
  int log_lanes;      // threads per slice, a power of two
  bool side_by_side;  // neighbouring threads have neighbouring slices
  int vector;         // entries that a thread reads at once: 1, or 16 bytes' worth
  int64_t chunks;     // per slice
  int64_t chunk;      // entries of one, a multiple of `vector`

  SUMPROD_BOTH int lanes() const { return 1 << log_lanes; }
  SUMPROD_BOTH int slices() const { return kSliceThreads >> log_lanes; }  // per block
};

SUMPROD_BOTH int64_t offset_of(const SliceLoop& loop, int64_t index, SliceOperand operand) {
  int64_t offset = 0;
  for (int d = loop.dims - 1; d > 0; --d) {
    offset += index % loop.size[d] * loop.stride[operand][d];
    index /= loop.size[d];
  }
  return loop.dims == 0 ? 0 : offset + index * loop.stride[operand][0];
}

inline int64_t inner_stride(const SliceLoop& loop, SliceOperand operand) {
  return loop.dims == 0 ? 0 : loop.stride[operand][loop.dims - 1];
}

// Whether the entries of every slice lie side by side, in whole groups of `vector`.
template <class Source>
bool reads_vectors(const SliceProblem& p, const void* data, SliceOperand operand, int vector) {
  bool fits = p.reduced.dims == 1 && inner_stride(p.reduced, operand) == 1 && p.reduced.count % vector == 0;
  for (int d = 0; d < p.kept.dims; ++d) fits = fits && p.kept.stride[operand][d] % vector == 0;
  return fits && reinterpret_cast<uintptr_t>(data) % (sizeof(Source) * vector) == 0;
}

// Estimated; to be measured on a GPU.
constexpr int64_t kEntriesPerLane = 8, kLongSlice = 2048, kLeastChunk = 4096;

template <class Source>
SliceTeams teams_for_slices(const SliceProblem& p, const void* output, bool chunked, const Stream& stream) {
  constexpr int kVector = 16 / sizeof(Source);
  SliceTeams teams = {};
  const int64_t reduced = inner_stride(p.reduced, kInput), kept = inner_stride(p.kept, kInput);
  teams.side_by_side = p.reduced.count > 1 && p.kept.count > 1 && kept != 0 && (kept < reduced || reduced == 0);
  const bool vectors = reads_vectors<Source>(p, p.input, kInput, kVector) &&
                       (output == nullptr || reads_vectors<Source>(p, output, kOutput, kVector));
  teams.vector = vectors && !teams.side_by_side ? kVector : 1;
  int64_t lanes = 1;
  if (teams.side_by_side) {
    int64_t across = 1;
    while (across < kWarp && across < p.kept.count) across *= 2;
    lanes = kSliceThreads / across;
    while (lanes > 1 && lanes * kEntriesPerLane > p.reduced.count * 2) lanes /= 2;
  } else if (p.reduced.count > kLongSlice) {
    lanes = kSliceThreads;
  } else {
    while (lanes < kWarp && lanes * kEntriesPerLane < p.reduced.count) lanes *= 2;
  }
  while (teams.lanes() < lanes) ++teams.log_lanes;
  teams.chunks = 1;
  const int64_t wanted = 4 * properties_of(stream.device).multiprocessors;
  const int64_t blocks = (p.kept.count + teams.slices() - 1) / teams.slices();
  if (chunked && blocks < wanted) {
    const int64_t most = (p.reduced.count + kLeastChunk - 1) / kLeastChunk, fill = (wanted + blocks - 1) / blocks;
    teams.chunks = most < fill ? most : fill;
  }
  const int64_t even = (p.reduced.count + teams.chunks - 1) / teams.chunks;
  teams.chunk = (even + teams.vector - 1) / teams.vector * teams.vector;
  return teams;
}

inline LaunchShape shape_of(const SliceProblem& p, const SliceTeams& teams) {
  const int64_t blocks = (p.kept.count + teams.slices() - 1) / teams.slices() * teams.chunks;
  return {blocks < kMostBlocks ? blocks : kMostBlocks, kSliceThreads, int64_t(3 * sizeof(double)) * kSliceThreads};
}

// The place of a thread: its slice, its lane in the slice's team, and the chunk of the slice.
struct SlicePlace {
  int64_t slice, chunk;
  int lane;
  bool exists;
};

// Calls use(place) for all slices and chunks; all threads of a block come along.
template <class Use>
SUMPROD_DEVICE void for_each_place(const SliceProblem& p, const SliceTeams& teams, Use use) {
  const int slices = teams.slices(), thread = int(threadIdx.x);
  const int64_t groups = (p.kept.count + slices - 1) >> (kLogSliceThreads - teams.log_lanes);
  for (int64_t block = blockIdx.x; block < groups * teams.chunks; block += gridDim.x) {
    SlicePlace place;
    const int own = teams.side_by_side ? thread & (slices - 1) : thread >> teams.log_lanes;
    place.lane = teams.side_by_side ? thread >> (kLogSliceThreads - teams.log_lanes) : thread & (teams.lanes() - 1);
    place.chunk = teams.chunks == 1 ? 0 : block / groups;
    place.slice = (block - place.chunk * groups) * slices + own;
    place.exists = place.slice < p.kept.count;
    use(place);
  }
}

constexpr int kSliceBatch = 4;

template <class Source, int Vector>
struct alignas(sizeof(Source) * Vector) SliceVector {
  Source entry[Vector];
};

// Where the j-th entry of a slice lies, from its first. Vectors are read where entries lie side by side.
template <int Vector>
SUMPROD_DEVICE int64_t entry_offset(const SliceProblem& p, int64_t j, SliceOperand operand) {
  if constexpr (Vector > 1) return j;
  return offset_of(p.reduced, j, operand);
}

// Calls use(vectors, count, j, apart) for the thread's part of a slice, a few vectors at a time so that reads overlap:
// the first `count` of them, from the j-th entry on and `apart` entries from one to the next.
template <class Source, int Vector, class Use>
SUMPROD_DEVICE void for_each_batch(const SliceProblem& p, const SliceTeams& teams, const SlicePlace& place, Use use) {
  if (!place.exists) return;
  const Source* input = static_cast<const Source*>(p.input) + offset_of(p.kept, place.slice, kInput);
  const int64_t begin = place.chunk * teams.chunk, limit = begin + teams.chunk;
  const int64_t end = limit < p.reduced.count ? limit : p.reduced.count;
  const int64_t apart = int64_t(Vector) << teams.log_lanes;
  for (int64_t j = begin + int64_t(place.lane) * Vector; j < end; j += kSliceBatch * apart) {
    SliceVector<Source, Vector> vectors[kSliceBatch];
    int count = 0;
#pragma unroll
    for (int b = 0; b < kSliceBatch; ++b) {
      const int64_t at = j + b * apart;
      if (at >= end) continue;
      vectors[b] = *reinterpret_cast<const SliceVector<Source, Vector>*>(input + entry_offset<Vector>(p, at, kInput));
      ++count;
    }
    use(vectors, count, j, apart);
  }
}

// ---- log-sum-exp --------------------------------------------------------------------------------

// sum = sum_j exp(x_j - top), squares likewise with 2 (x_j - top). With top = +inf both count the entries that are
// +inf; NaN makes both NaN.
template <class Real>
class RunningSum {
 public:
  template <int N>
  SUMPROD_DEVICE void add(const Real (&x)[N], bool with_squares) {
    Real top = top_;
#pragma unroll
    for (int k = 0; k < N; ++k) top = x[k] > top ? x[k] : top;
    if (top > top_) rescale(top);
    const Real shift = shift_of(top);
    Real sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const Real term = x[k] == infinity<Real>() ? Real(1) : exp(x[k] - shift);
      sum += term;
      squares += term * term;
    }
    sum_ += double(sum);
    if (with_squares) squares_ += double(squares);
  }

  SUMPROD_DEVICE void add(const SlicePartial& other) {
    const Real top = Real(other.top);
    if (top > top_) rescale(top);
    const double scale = scale_to(top);
    sum_ += other.sum * scale;
    squares_ += other.squares * scale * scale;
  }

  SUMPROD_DEVICE SlicePartial partial() const { return {double(top_), sum_, squares_}; }

 private:
  SUMPROD_DEVICE static Real shift_of(Real top) { return top == -infinity<Real>() ? Real(0) : top; }
  // What numbers relative to `from` are to be multiplied by.
  SUMPROD_DEVICE double scale_to(Real from) const { return from == top_ ? 1.0 : double(exp(from - shift_of(top_))); }
  SUMPROD_DEVICE void rescale(Real top) {
    const Real old = top_;
    top_ = top;
    const double scale = scale_to(old);
    sum_ *= scale;
    squares_ *= scale * scale;
  }

  Real top_ = -infinity<Real>();
  double sum_ = 0.0, squares_ = 0.0;
};

// Adds up the sums of a team; its first thread has the result. For all threads of the block at once.
template <class Real>
SUMPROD_DEVICE SlicePartial team_sum(const SliceTeams& teams, const SlicePlace& place, const RunningSum<Real>& own) {
  SlicePartial* parts = reinterpret_cast<SlicePartial*>(shared_memory());
  const int stride = teams.side_by_side ? teams.slices() : 1;
  RunningSum<Real> sum = own;
  for (int half = teams.lanes() / 2; half > 0; half /= 2) {
    __syncthreads();
    parts[threadIdx.x] = sum.partial();
    __syncthreads();
    if (place.lane < half) sum.add(parts[threadIdx.x + half * stride]);
  }
  return sum.partial();
}

// The same for teams that are parts of a warp, without shared memory.
template <class Real>
SUMPROD_DEVICE SlicePartial warp_team_sum(int lanes, const RunningSum<Real>& own) {
  RunningSum<Real> sum = own;
  for (int d = lanes / 2; d > 0; d /= 2) {
    const SlicePartial mine = sum.partial();
    SlicePartial other;
    other.top = __shfl_xor_sync(kFullWarp, mine.top, d);
    other.sum = __shfl_xor_sync(kFullWarp, mine.sum, d);
    other.squares = __shfl_xor_sync(kFullWarp, mine.squares, d);
    sum.add(other);
  }
  return sum.partial();
}

template <class Source>
using RealOfSource = decltype(as_real(Source()));

// Sums of all slices, or of their chunks: finish(slice, sum) or partials[slice * chunks + chunk].
template <class Source, int Vector, bool kSquares, class Finish>
SUMPROD_DEVICE void sum_slices(const SliceProblem& p, const SliceTeams& teams, SlicePartial* partials, Finish finish) {
  using Real = RealOfSource<Source>;
  for_each_place(p, teams, [&](const SlicePlace& place) {
    RunningSum<Real> sum;
    for_each_batch<Source, Vector>(p, teams, place, [&](const auto& vectors, int count, int64_t, int64_t) {
      Real x[kSliceBatch * Vector];
#pragma unroll
      for (int k = 0; k < kSliceBatch * Vector; ++k) {
        x[k] = k / Vector < count ? Real(as_real(vectors[k / Vector].entry[k % Vector])) : -infinity<Real>();
      }
      sum.add(x, kSquares);
    });
    const bool in_warp = !teams.side_by_side && teams.lanes() <= kWarp;
    const SlicePartial total = in_warp ? warp_team_sum(teams.lanes(), sum) : team_sum(teams, place, sum);
    if (place.lane != 0 || !place.exists) return;
    if (teams.chunks > 1) {
      partials[place.slice * teams.chunks + place.chunk] = total;
    } else {
      finish(place.slice, total);
    }
  });
}

// One warp per slice.
template <class Real, class Finish>
SUMPROD_DEVICE void combine_chunks(const SliceProblem& p, int64_t chunks, const SlicePartial* partials, Finish finish) {
  const int64_t warps = int64_t(gridDim.x) * (kSliceThreads / kWarp);
  for (int64_t slice = int64_t(blockIdx.x) * (kSliceThreads / kWarp) + warp_of_thread(); slice < p.kept.count;
       slice += warps) {
    RunningSum<Real> sum;
    for (int64_t c = lane_of_thread(); c < chunks; c += kWarp) sum.add(partials[slice * chunks + c]);
    const SlicePartial total = warp_team_sum(kWarp, sum);
    if (lane_of_thread() == 0) finish(slice, total);
  }
}

inline LaunchShape combine_shape(const SliceProblem& p) {
  constexpr int64_t kWarps = kSliceThreads / kWarp;
  const int64_t blocks = (p.kept.count + kWarps - 1) / kWarps;
  return {blocks < kMostBlocks ? blocks : kMostBlocks, kSliceThreads};
}

// output[k, j] = f(input[k, j], parameters(k)) for all entries.
template <class Real, int Vector, class Parameters, class F>
SUMPROD_DEVICE void map_slices(const SliceProblem& p, const SliceTeams& teams, Real* output, Parameters parameters,
                               F f) {
  for_each_place(p, teams, [&](const SlicePlace& place) {
    if (!place.exists) return;
    const auto own = parameters(place.slice);
    Real* row = output + offset_of(p.kept, place.slice, kOutput);
    for_each_batch<Real, Vector>(p, teams, place, [&](const auto& vectors, int count, int64_t j, int64_t apart) {
#pragma unroll
      for (int b = 0; b < kSliceBatch; ++b) {
        if (b >= count) break;
        SliceVector<Real, Vector> out;
#pragma unroll
        for (int k = 0; k < Vector; ++k) out.entry[k] = f(vectors[b].entry[k], own);
        Real* to = row + entry_offset<Vector>(p, j + b * apart, kOutput);
        *reinterpret_cast<SliceVector<Real, Vector>*>(to) = out;
      }
    });
  });
}

// f.operator()<Vector>() with the vector of the teams.
template <class Source, class F>
void with_vector(const SliceTeams& teams, F f) {
  if (teams.vector == 1) return f.template operator()<1>();
  f.template operator()<int(16 / sizeof(Source))>();
}

}  // namespace sumprod::gpu
