// Expected transition counts: a product of two tall matrices, summed over all pairs of steps,
//   counts[i][j] = weight[i][j] * sum over (b, t) of from[b, t - 1, i] * to[b, t, j],
// in two stages: each block adds up a range of pairs for one tile of the result, in float for a while and then in
// double; a second kernel adds the blocks' sums in order.
#include "gpu/hmm_arithmetic.cuh"
#include "gpu/hmm_length.cuh"
#include "gpu/hmm_rows.h"

namespace sumprod::gpu {

namespace {

constexpr int kThreads = 256;
constexpr int kSide = 4;  // of the patch of the tile that one thread adds up

// Pairs are added in units, each by one block per tile. The number of units depends on the sizes alone.
constexpr int64_t kMostUnits = 256, kLeastPairs = 256;
constexpr int64_t kPartialBytes = int64_t(64) << 20;

template <class Real, int Tile>
struct CountTile {
  static constexpr int kPatches = (Tile / kSide) * (Tile / kSide);  // threads that cover a tile once
  static constexpr int kSlices = kThreads / kPatches;               // of the pairs, side by side
  static constexpr int kPanel = sizeof(Real) == 4 ? 64 : 32;        // pairs in shared memory at a time
  static constexpr int kFlush = 4;                                  // panels that are added up before rounding matters
  static_assert(kSlices >= 1 && kPanel % kSlices == 0);

  Real *from, *to;  // [pair of the panel][state of the tile]
  int* pair;        // [pair of the panel]: whether it counts
  double* sums;     // [slice][state][state]; after the panels, in the same memory
  int64_t bytes;
  SUMPROD_BOTH explicit CountTile(unsigned char* base) {
    SharedArena panels(base), result(base);
    from = panels.take<Real>(kPanel * Tile);
    to = panels.take<Real>(kPanel * Tile);
    pair = panels.take<int>(kPanel);
    sums = result.take<double>(int64_t(kSlices) * Tile * Tile);
    bytes = panels.used() > result.used() ? panels.used() : result.used();
  }
};

// Whether step `row` and the one before are a pair of a sequence that is to be counted.
SUMPROD_DEVICE bool is_pair(const HmmRows& rows, int64_t row) {
  const HmmProblem& p = rows.problem;
  if (row >= p.batch * p.steps) return false;
  const int64_t sequence = row / p.steps, t = row % p.steps;
  return t > 0 && t < length_on_device(p, sequence) && rows.redo[sequence] == 0;
}

template <class Real, int Tile>
SUMPROD_DEVICE void load_panel(const HmmRows& rows, int64_t first, int64_t end, int64_t i0, int64_t j0,
                               const CountTile<Real, Tile>& tile) {
  const int64_t states = rows.problem.states;
  if (int(threadIdx.x) < tile.kPanel) {
    const int64_t row = first + threadIdx.x;
    tile.pair[threadIdx.x] = row < end && is_pair(rows, row);
  }
  __syncthreads();
  for (int k = int(threadIdx.x); k < tile.kPanel * Tile; k += kThreads) {
    const int64_t row = first + k / Tile, i = i0 + k % Tile, j = j0 + k % Tile;
    const bool pair = tile.pair[k / Tile] != 0;
    tile.from[k] = pair && i < states ? static_cast<const Real*>(rows.forward)[(row - 1) * states + i] : Real(0);
    tile.to[k] = pair && j < states ? static_cast<const Real*>(rows.backward)[row * states + j] : Real(0);
  }
}

// Where sums go: those of units to be added up, or, where a unit is a sequence, the counts themselves.
struct CountsOut {
  double* partial;  // [unit, states, states], or null
  const double* shift;
  void* counts;  // [batch, states, states]
};

template <class Real>
SUMPROD_DEVICE double weight_at(const HmmProblem& p, int64_t sequence, int64_t i, int64_t j, const double* shift) {
  const Real* potential = static_cast<const Real*>(p.transition) + sequence * p.transition_batch;
  const double top = shift[p.transition_batch == 0 ? 0 : sequence];
  return exp(double(potential[i * p.transition_from + j * p.transition_to]) - top);
}

template <class Real>
SUMPROD_DEVICE void put_count(const HmmRows& rows, const CountsOut& out, int64_t unit, int64_t i, int64_t j,
                              double sum) {
  const HmmProblem& p = rows.problem;
  const int64_t at = (unit * p.states + i) * p.states + j;
  if (out.partial != nullptr) {
    out.partial[at] = sum;
  } else if (rows.redo[unit] == 0) {
    static_cast<Real*>(out.counts)[at] = Real(sum * weight_at<Real>(p, unit, i, j, out.shift));
  }
}

template <class Real, int Tile>
__global__ void __launch_bounds__(kThreads) counts_kernel(HmmRows rows, int64_t rows_per_unit, CountsOut out) {
  using T = CountTile<Real, Tile>;
  const T tile(shared_memory());
  const int64_t states = rows.problem.states, tiles = (states + Tile - 1) / Tile;
  const int64_t unit = blockIdx.x / (tiles * tiles), place = blockIdx.x % (tiles * tiles);
  const int64_t i0 = place / tiles * Tile, j0 = place % tiles * Tile;
  const int slice = int(threadIdx.x) / T::kPatches, patch = int(threadIdx.x) % T::kPatches;
  const int i = patch / (Tile / kSide) * kSide, j = patch % (Tile / kSide) * kSide;
  double sum[kSide][kSide] = {};
  Real part[kSide][kSide] = {};
  const auto flush = [&] {
    for (int a = 0; a < kSide; ++a) {
      for (int b = 0; b < kSide; ++b) {
        sum[a][b] += double(part[a][b]);
        part[a][b] = Real(0);
      }
    }
  };
  const int64_t begin = unit * rows_per_unit, count = rows.problem.batch * rows.problem.steps;
  const int64_t end = begin + rows_per_unit < count ? begin + rows_per_unit : count;
  int panels = 0;
  for (int64_t first = begin; first < end; first += T::kPanel) {
    __syncthreads();
    load_panel(rows, first, end, i0, j0, tile);
    __syncthreads();
    for (int k = slice; k < T::kPanel; k += T::kSlices) {
      const auto four_x = *reinterpret_cast<const Four<Real>*>(tile.from + k * Tile + i);
      const auto four_y = *reinterpret_cast<const Four<Real>*>(tile.to + k * Tile + j);
      const Real x[kSide] = {four_x.x, four_x.y, four_x.z, four_x.w};
      const Real y[kSide] = {four_y.x, four_y.y, four_y.z, four_y.w};
#pragma unroll
      for (int a = 0; a < kSide; ++a) {
#pragma unroll
        for (int b = 0; b < kSide; ++b) part[a][b] += x[a] * y[b];
      }
    }
    if (++panels % T::kFlush == 0) flush();
  }
  flush();
  __syncthreads();
  for (int a = 0; a < kSide; ++a) {
    for (int b = 0; b < kSide; ++b) tile.sums[(slice * Tile + i + a) * Tile + j + b] = sum[a][b];
  }
  __syncthreads();
  for (int k = int(threadIdx.x); k < Tile * Tile; k += kThreads) {
    double total = 0.0;
    for (int s = 0; s < T::kSlices; ++s) total += tile.sums[s * Tile * Tile + k];
    const int64_t row = i0 + k / Tile, column = j0 + k % Tile;
    if (row < states && column < states) put_count<Real>(rows, out, unit, row, column, total);
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads) add_counts_kernel(HmmProblem p, HmmCounts counts, int64_t units) {
  const int64_t square = p.states * p.states, k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= square) return;
  double total = 0.0;
  for (int64_t u = 0; u < units; ++u) total += counts.partial[u * square + k];
  counts.counts[k] = total * weight_at<Real>(p, 0, k / p.states, k % p.states, counts.shift);
}

template <class Real, int Tile>
void launch_counts(const HmmRows& rows, int64_t units, int64_t rows_per_unit, const CountsOut& out,
                   const Stream& stream) {
  const int64_t tiles = (rows.problem.states + Tile - 1) / Tile;
  const LaunchShape shape{units * tiles * tiles, kThreads, CountTile<Real, Tile>(nullptr).bytes};
  launch(counts_kernel<Real, Tile>, shape, stream, rows, rows_per_unit, out);
}

template <class Real>
void launch_counts_for(const HmmRows& rows, int64_t units, int64_t rows_per_unit, const CountsOut& out,
                       const Stream& stream) {
  const int64_t states = rows.problem.states;
  if (states <= 16) return launch_counts<Real, 16>(rows, units, rows_per_unit, out, stream);
  if (states <= 32) return launch_counts<Real, 32>(rows, units, rows_per_unit, out, stream);
  launch_counts<Real, 64>(rows, units, rows_per_unit, out, stream);
}

template <class Real>
void count(const HmmRows& rows, const HmmCounts& counts, const Stream& stream) {
  const int64_t units = count_units(rows.problem), steps = rows.problem.batch * rows.problem.steps;
  launch_counts_for<Real>(rows, units, (steps + units - 1) / units, {counts.partial, nullptr, nullptr}, stream);
  const int64_t square = rows.problem.states * rows.problem.states;
  const LaunchShape shape{(square + kThreads - 1) / kThreads, kThreads};
  launch(add_counts_kernel<Real>, shape, stream, rows.problem, counts, units);
}

}  // namespace

int64_t count_units(const HmmProblem& problem) {
  const int64_t square = problem.states * problem.states * int64_t(sizeof(double));
  const int64_t by_pairs = (problem.batch * problem.steps + kLeastPairs - 1) / kLeastPairs;
  int64_t units = kPartialBytes / square;
  units = units < by_pairs ? units : by_pairs;
  units = units < kMostUnits ? units : kMostUnits;
  return units < 1 ? 1 : units;
}

void transition_counts(const HmmRows& rows, const HmmCounts& counts, const Stream& stream) {
  if (rows.problem.is_double) return count<double>(rows, counts, stream);
  count<float>(rows, counts, stream);
}

void transition_counts_for_each(const HmmRows& rows, const double* shift, void* counts, const Stream& stream) {
  const HmmProblem& p = rows.problem;
  const CountsOut out{nullptr, shift, counts};
  if (p.is_double) return launch_counts_for<double>(rows, p.batch, p.steps, out, stream);
  launch_counts_for<float>(rows, p.batch, p.steps, out, stream);
}

}  // namespace sumprod::gpu
