// Tiled products of batches of strided matrices, for any pair of operations that a thread applies to its elements.
//
// A result [rows, columns] is cut into square tiles. A group of threads computes one tile; kGroups groups make a
// block and walk along the inner index in step, so that small matrices fill blocks, too. Both operands pass through
// shared memory, kDepth entries of the inner index at a time, in two buffers: while one is used, the next entries are
// on their way from memory. Every element is summed in the order of the inner index whatever the tile is, so that
// results do not depend on the choice of a tile.
#pragma once

#include "core/matrix_problem.h"
#include "gpu/numbers.cuh"

namespace sumprod::gpu {

constexpr int kDepth = 8;

// kSide x kSide threads with kEach x kEach elements a thread.
template <class Real_, int kSide_, int kEach_, int kThreads_, int kBlocks_>
struct Tiling {
  using Real = Real_;
  static constexpr int kSide = kSide_, kEach = kEach_, kThreads = kThreads_;
  static constexpr int kBlocks = kBlocks_;  // of a multiprocessor, at least
  static constexpr int kGroup = kSide * kSide, kGroups = kThreads / kGroup, kTile = kSide * kEach;
  static constexpr int kStride = kTile + 4;  // of a row in shared memory; writes along the depth meet no bank twice
  static constexpr int kBuffer = kDepth * kStride;
  static constexpr int64_t kSharedBytes = int64_t(sizeof(Real)) * kGroups * 4 * kBuffer;
  static_assert(kEach % 4 == 0 && kThreads % kGroup == 0 && kTile * kDepth % kGroup == 0);
};

template <class Real>
using SmallTiles = Tiling<Real, 2, 4, 64, 8>;  // 8 x 8, 16 in a block
template <class Real>
using MiddleTiles = Tiling<Real, 8, 4, 256, 2>;  // 32 x 32, 4 in a block
using LargeFloatTiles = Tiling<float, 16, 8, 256, 2>;
template <class Real>
using LargeTiles = Tiling<Real, 16, 4, 256, 2>;  // 64 x 64

// Results with a side of at most this many go to small tiles.  Estimated; to be measured on a GPU.
constexpr int64_t kSmallSide = 16;
// Large tiles are chosen where both sides exceed this and every multiprocessor gets at least one.  Estimated, too.
constexpr int64_t kLargeSide = 64;

SUMPROD_BOTH constexpr int64_t tile_cuts(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

template <class T>
int64_t tiles_of(int64_t batch, int64_t rows, int64_t columns) {
  return batch * tile_cuts(rows, T::kTile) * tile_cuts(columns, T::kTile);
}

// Calls run<Tiling>() with the tiling for results [batch, rows, columns].
template <class Real, class Large, class Run>
void choose_tiles(int64_t batch, int64_t rows, int64_t columns, const Stream& stream, Run run) {
  const int64_t side = rows < columns ? rows : columns;
  if (side <= kSmallSide) return run.template operator()<SmallTiles<Real>>();
  const int64_t enough = properties_of(stream.device).multiprocessors;
  if (side > kLargeSide && tiles_of<Large>(batch, rows, columns) >= enough) return run.template operator()<Large>();
  run.template operator()<MiddleTiles<Real>>();
}

template <class T>
LaunchShape tile_launch(int64_t batch, int64_t rows, int64_t columns) {
  return {tile_cuts(tiles_of<T>(batch, rows, columns), T::kGroups), T::kThreads, T::kSharedBytes};
}

// Where the matrices of a batch element start, in elements, and which of the distinct matrices they are.
struct BatchPlace {
  int64_t x = 0, y = 0, x_index = 0, y_index = 0;

  SUMPROD_DEVICE BatchPlace(const MatrixBatch& batch, int64_t element) {
    for (int d = batch.dims - 1; d >= 0; --d) {
      const int64_t i = d == 0 ? element : element % batch.size[d];
      if (d > 0) element /= batch.size[d];
      x += i * batch.x.stride[d];
      y += i * batch.y.stride[d];
      x_index += i * batch.x.spacing[d];
      y_index += i * batch.y.spacing[d];
    }
  }
};

// The tile of this thread's group, and the thread's elements of it: quads of neighbours, 4 * kSide apart.
template <class T>
struct TilePlace {
  int64_t batch, row, column;  // of the tile
  int rows, columns;           // of the tile that exist; none for groups that have no tile
  int group, member;

  SUMPROD_DEVICE TilePlace(int64_t batches, int64_t all_rows, int64_t all_columns)
      : group(int(threadIdx.x) / T::kGroup), member(int(threadIdx.x) % T::kGroup) {
    const int64_t across = tile_cuts(all_columns, T::kTile), each = across * tile_cuts(all_rows, T::kTile);
    const int64_t index = int64_t(blockIdx.x) * T::kGroups + group;
    batch = index / each;
    const int64_t within = index % each;
    row = within / across * T::kTile;
    column = within % across * T::kTile;
    const bool exists = batch < batches;
    if (!exists) batch = 0;
    rows = exists ? part(all_rows - row) : 0;
    columns = exists ? part(all_columns - column) : 0;
  }

 private:
  static SUMPROD_DEVICE int part(int64_t n) { return n < T::kTile ? int(n) : T::kTile; }
};

// One operand of a tile: `outer` rows (or columns) of it, each along the inner index.
template <class Real>
struct Strip {
  const Real* data;
  int64_t outer_stride, depth_stride;
  int outer;
  int64_t depth;

  // Neighbouring threads read along the depth.
  SUMPROD_DEVICE bool along_depth() const {
    return depth_stride == 1 || (outer_stride != 1 && depth_stride < outer_stride);
  }
};

// kDepth entries of a strip on their way from memory to shared memory.
template <class T>
struct StripLoad {
  using Real = typename T::Real;
  static constexpr int kCount = T::kTile * kDepth / T::kGroup;
  Real value[kCount];

  // Calls f(i, outer, depth) for the entries of this thread.
  template <bool kAlongDepth, class F>
  static SUMPROD_DEVICE void for_entries(int member, F f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int e = member + i * T::kGroup;
      if (kAlongDepth) {
        f(i, e / kDepth, e % kDepth);
      } else {
        f(i, e % T::kTile, e / T::kTile);
      }
    }
  }
  template <class F>
  static SUMPROD_DEVICE void for_entries(const Strip<Real>& strip, int member, F f) {
    if (strip.along_depth()) {
      for_entries<true>(member, f);
    } else {
      for_entries<false>(member, f);
    }
  }

  SUMPROD_DEVICE void fetch(const Strip<Real>& strip, int member, int64_t first) {
    for_entries(strip, member, [&](int i, int outer, int depth) {
      const bool exists = outer < strip.outer && first + depth < strip.depth;
      value[i] = exists ? strip.data[outer * strip.outer_stride + (first + depth) * strip.depth_stride] : Real(0);
    });
  }

  // Entries outside of the matrix become `outside`, the others transform(value, outer, index).
  template <class Transform>
  SUMPROD_DEVICE void put(const Strip<Real>& strip, int member, int64_t first, Real outside, Transform transform,
                          Real* shared) const {
    for_entries(strip, member, [&](int i, int outer, int depth) {
      const bool exists = outer < strip.outer && first + depth < strip.depth;
      shared[depth * T::kStride + outer] = exists ? transform(value[i], outer, first + depth) : outside;
    });
  }
};

// Passes two strips through shared memory: step(left, right, first) sees entries [first, first + kDepth) of the
// inner index as [kDepth, kStride] arrays. All threads of the block call this with the same depth.
template <class T, class Left, class Right, class Step>
SUMPROD_DEVICE void for_depth(const TilePlace<T>& place, const Strip<typename T::Real>& left,
                              const Strip<typename T::Real>& right, typename T::Real outside, Left left_transform,
                              Right right_transform, Step step) {
  using Real = typename T::Real;
  Real* shared = reinterpret_cast<Real*>(shared_memory()) + place.group * 4 * T::kBuffer;
  const int64_t depth = left.depth;
  if (depth == 0) return;
  StripLoad<T> left_load, right_load;
  const auto fetch = [&](int64_t first) {
    left_load.fetch(left, place.member, first);
    right_load.fetch(right, place.member, first);
  };
  const auto put = [&](int64_t first, Real* to) {
    left_load.put(left, place.member, first, outside, left_transform, to);
    right_load.put(right, place.member, first, outside, right_transform, to + T::kBuffer);
  };
  fetch(0);
  put(0, shared);
  __syncthreads();
  int side = 0;
  for (int64_t first = 0; first < depth; first += kDepth, side ^= 1) {
    const bool more = first + kDepth < depth;
    if (more) fetch(first + kDepth);
    const Real* now = shared + side * 2 * T::kBuffer;
    step(now, now + T::kBuffer, first);
    if (more) put(first + kDepth, shared + (side ^ 1) * 2 * T::kBuffer);
    __syncthreads();
  }
}

template <class Real>
struct alignas(16) Quad {
  Real at[4];
};

// The result of a group: where this thread's elements are.
template <class T, class Value = typename T::Real>
struct ResultTile {
  Value* data;  // of the tile
  int64_t row_stride, column_stride;
  int rows, columns;
  int first_row, first_column;  // of the thread, in its first quad

  SUMPROD_DEVICE ResultTile(const TilePlace<T>& place, Value* matrix, int64_t row_stride_, int64_t column_stride_)
      : data(matrix + place.row * row_stride_ + place.column * column_stride_),
        row_stride(row_stride_),
        column_stride(column_stride_),
        rows(place.rows),
        columns(place.columns) {
    // Neighbouring threads write neighbouring elements.
    const int fast = place.member % T::kSide * 4, slow = place.member / T::kSide * 4;
    const bool along_columns = column_stride <= row_stride;
    first_row = along_columns ? slow : fast;
    first_column = along_columns ? fast : slow;
  }

  SUMPROD_DEVICE int row(int r) const { return first_row + r / 4 * (4 * T::kSide) + r % 4; }
  SUMPROD_DEVICE int column(int c) const { return first_column + c / 4 * (4 * T::kSide) + c % 4; }
  SUMPROD_DEVICE bool exists(int r, int c) const { return row(r) < rows && column(c) < columns; }
  SUMPROD_DEVICE int64_t offset(int r, int c) const { return row(r) * row_stride + column(c) * column_stride; }

  // f(r, c) for the thread's elements that exist.
  template <class F>
  SUMPROD_DEVICE void for_each(F f) const {
#pragma unroll
    for (int r = 0; r < T::kEach; ++r) {
#pragma unroll
      for (int c = 0; c < T::kEach; ++c) {
        if (exists(r, c)) f(r, c);
      }
    }
  }

  // Stores value(r, c), four at once where the memory allows.
  template <class F>
  SUMPROD_DEVICE void store(F value) const {
    if (column_stride == 1 && aligned(row_stride)) {
      store_quads<true>([&](int r, int c) { return value(r, c); });
    } else if (row_stride == 1 && aligned(column_stride)) {
      store_quads<false>([&](int c, int r) { return value(r, c); });
    } else {
      for_each([&](int r, int c) { data[offset(r, c)] = value(r, c); });
    }
  }

 private:
  SUMPROD_DEVICE bool aligned(int64_t line_stride) const {
    return (uint64_t(reinterpret_cast<uintptr_t>(data)) | uint64_t(line_stride) * sizeof(Value)) % 16 == 0;
  }

  // Lines are rows or columns; value(line, place in it).
  template <bool kByRows, class F>
  SUMPROD_DEVICE void store_quads(F value) const {
    const int64_t line_stride = kByRows ? row_stride : column_stride;
#pragma unroll
    for (int line = 0; line < T::kEach; ++line) {
      const int l = kByRows ? row(line) : column(line);
      if (l >= (kByRows ? rows : columns)) continue;
#pragma unroll
      for (int q = 0; q < T::kEach; q += 4) {
        const int from = kByRows ? column(q) : row(q), left = (kByRows ? columns : rows) - from;
        Value* to = data + l * line_stride + from;
        if (left >= 4) {
          *reinterpret_cast<Quad<Value>*>(to) = {
              {value(line, q), value(line, q + 1), value(line, q + 2), value(line, q + 3)}};
        } else {
#pragma unroll
          for (int i = 0; i < 3; ++i) {
            if (i < left) to[i] = value(line, q + i);
          }
        }
      }
    }
  }
};

// The entries at one depth that a thread multiplies, quad by quad.
template <class T>
SUMPROD_DEVICE void read_quads(const typename T::Real* shared, Quad<typename T::Real> (&quads)[T::kEach / 4]) {
#pragma unroll
  for (int q = 0; q < T::kEach / 4; ++q) {
    quads[q] = *reinterpret_cast<const Quad<typename T::Real>*>(shared + q * 4 * T::kSide);
  }
}

// Calls f(r, c, left, right, d) for all of the thread's elements and kDepth entries.
template <class T, class Result, class F>
SUMPROD_DEVICE void for_products(const Result& result, const typename T::Real* left, const typename T::Real* right,
                                 F f) {
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    Quad<typename T::Real> a[T::kEach / 4], b[T::kEach / 4];
    read_quads<T>(left + d * T::kStride + result.first_row, a);
    read_quads<T>(right + d * T::kStride + result.first_column, b);
#pragma unroll
    for (int r = 0; r < T::kEach; ++r) {
#pragma unroll
      for (int c = 0; c < T::kEach; ++c) f(r, c, a[r / 4].at[r % 4], b[c / 4].at[c % 4], d);
    }
  }
}

// Products are added up in parts of this many terms, for the sake of precision.
constexpr int64_t kSummed = 256;

// sum = left right. What has been summed up waits in `result`, which is overwritten.
template <class T, class Left, class Right>
SUMPROD_DEVICE void multiply(const TilePlace<T>& place, const Strip<typename T::Real>& left,
                             const Strip<typename T::Real>& right, const ResultTile<T>& result, Left left_transform,
                             Right right_transform, typename T::Real (&sum)[T::kEach][T::kEach]) {
  using Real = typename T::Real;
#pragma unroll
  for (int r = 0; r < T::kEach; ++r) {
#pragma unroll
    for (int c = 0; c < T::kEach; ++c) sum[r][c] = Real(0);
  }
  for_depth<T>(place, left, right, Real(0), left_transform, right_transform,
               [&](const Real* a, const Real* b, int64_t first) {
                 if (first > 0 && first % kSummed == 0) {
                   const bool fresh = first == kSummed;
                   result.for_each([&](int r, int c) {
                     Real* total = result.data + result.offset(r, c);
                     *total = fresh ? sum[r][c] : *total + sum[r][c];
                     sum[r][c] = Real(0);
                   });
                 }
                 for_products<T>(result, a, b, [&](int r, int c, Real x, Real y, int) { sum[r][c] += x * y; });
               });
  if (left.depth > kSummed) {
    result.for_each([&](int r, int c) { sum[r][c] += result.data[result.offset(r, c)]; });
  }
}

}  // namespace sumprod::gpu
