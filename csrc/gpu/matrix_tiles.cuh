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
  static constexpr int kBlocks = kBlocks_;            // of a multiprocessor, at least
  static constexpr int kRun = kEach < 4 ? kEach : 4;  // neighbouring elements, read and written at once
  static constexpr int kGroup = kSide * kSide, kGroups = kThreads / kGroup, kTile = kSide * kEach;
  static constexpr int kStride = kTile + 4;  // of a row in shared memory; writes along the depth meet no bank twice
  static constexpr int kBuffer = kDepth * kStride;
  static constexpr int64_t kSharedBytes = int64_t(sizeof(Real)) * kGroups * 4 * kBuffer;
  static_assert(kEach % kRun == 0 && kThreads % kGroup == 0 && kGroup % kTile == 0 && kGroup % kDepth == 0);
};

template <class Real>
using SmallTiles = Tiling<Real, 4, 2, 128, 4>;  // 8 x 8, 8 in a block
template <class Real>
using MiddleTiles = Tiling<Real, 8, 4, 256, 2>;   // 32 x 32, 4 in a block
using LargeTiles = Tiling<float, 16, 8, 256, 2>;  // 128 x 128

// Results with a side of at most this many go to small tiles.  Estimated; to be measured on a GPU.
constexpr int64_t kSmallSide = 16;
// Large tiles are chosen where both sides exceed this and every multiprocessor gets at least one.  Estimated, too.
constexpr int64_t kLargeSide = 64;

SUMPROD_BOTH constexpr int64_t tile_cuts(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

template <class T>
int64_t tiles_of(int64_t batch, int64_t rows, int64_t columns) {
  return batch * tile_cuts(rows, T::kTile) * tile_cuts(columns, T::kTile);
}

// Calls run<Tiling>() with the tiling for results [batch, rows, columns]. Large tiles are worth their registers where
// a product is a multiplication: they halve the exponentials and the reads.
template <class Real, bool kLarge, class Run>
void choose_tiles(int64_t batch, int64_t rows, int64_t columns, const Stream& stream, Run run) {
  const int64_t side = rows < columns ? rows : columns;
  if (side <= kSmallSide) return run.template operator()<SmallTiles<Real>>();
  if constexpr (kLarge && sizeof(Real) == 4) {
    const int64_t enough = properties_of(stream.device).multiprocessors;
    if (side > kLargeSide && tiles_of<LargeTiles>(batch, rows, columns) >= enough) {
      return run.template operator()<LargeTiles>();
    }
  }
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

// The tile of this thread's group, and the thread's elements of it: runs of neighbours, kRun * kSide apart.
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

// kDepth entries of a strip on their way from memory to shared memory. Each thread has every so many-th entry along
// one of the two directions.
template <class T>
class StripLoad {
 public:
  using Real = typename T::Real;

  SUMPROD_DEVICE StripLoad(const Strip<Real>& strip, int member) : outers_(strip.outer) {
    const bool along = strip.along_depth();
    outer_ = along ? member / kDepth : member % T::kTile;
    depth_ = along ? member % kDepth : member / T::kTile;
    outer_step_ = along ? T::kGroup / kDepth : 0;
    depth_step_ = along ? 0 : T::kGroup / T::kTile;
    next_ = strip.data + outer_ * strip.outer_stride + depth_ * strip.depth_stride;
    step_ = outer_step_ * strip.outer_stride + depth_step_ * strip.depth_stride;
    advance_ = kDepth * strip.depth_stride;
  }

  // Reads the next entries, of which `count` exist (kDepth or more: all).
  SUMPROD_DEVICE void fetch(int64_t count) {
    count_ = count < kDepth ? int(count) : kDepth;
#pragma unroll
    for (int i = 0; i < kCount; ++i) value_[i] = exists(i) ? next_[i * step_] : Real(0);
    next_ += advance_;
  }

  // Entries outside of the matrix become `outside`, the others transform(value, outer, index).
  template <class Transform>
  SUMPROD_DEVICE void put(int64_t first, Real outside, Transform transform, Real* shared) const {
    Real* to = shared + depth_ * T::kStride + outer_;
    const int step = depth_step_ * T::kStride + outer_step_;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      to[i * step] =
          exists(i) ? transform(value_[i], outer_ + i * outer_step_, first + depth_ + i * depth_step_) : outside;
    }
  }

 private:
  static constexpr int kCount = T::kTile * kDepth / T::kGroup;
  SUMPROD_DEVICE bool exists(int i) const {
    return outer_ + i * outer_step_ < outers_ && depth_ + i * depth_step_ < count_;
  }

  const Real* next_;
  int64_t step_, advance_;
  int outers_, count_ = 0, outer_, depth_, outer_step_, depth_step_;
  Real value_[kCount];
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
  StripLoad<T> left_load(left, place.member), right_load(right, place.member);
  const auto fetch = [&](int64_t first) {
    left_load.fetch(depth - first);
    right_load.fetch(depth - first);
  };
  const auto put = [&](int64_t first, Real* to) {
    left_load.put(first, outside, left_transform, to);
    right_load.put(first, outside, right_transform, to + T::kBuffer);
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

// Neighbours, read and written in one go (two for what is longer than 16 bytes).
template <class Value, int kCount>
struct alignas(kCount * sizeof(Value) < 16 ? kCount * sizeof(Value) : 16) Run {
  Value at[kCount];
};

// A value that the compiler does not know, so that what is computed from it in a rare branch of a loop is not kept in
// registers for the whole of the loop.
SUMPROD_DEVICE int unknown_zero() {
  int zero = 0;
#if defined(__CUDA_ARCH__)
  asm volatile("mov.u32 %0, 0;" : "=r"(zero));
#endif
  return zero;
}

// The result of a group: where this thread's elements are. One of the strides is 1.
template <class T, class Value = typename T::Real>
struct ResultTile {
  Value* data;  // of the tile
  int64_t row_stride, column_stride;
  int rows, columns;
  bool by_rows;                 // rows, not columns, lie in one piece
  int first_row, first_column;  // of the thread, in its first run

  SUMPROD_DEVICE ResultTile(const TilePlace<T>& place, Value* matrix, int64_t line, bool by_rows_)
      : row_stride(by_rows_ ? line : 1),
        column_stride(by_rows_ ? 1 : line),
        rows(place.rows),
        columns(place.columns),
        by_rows(by_rows_) {
    data = matrix + place.row * row_stride + place.column * column_stride;
    // Neighbouring threads write neighbouring elements.
    const int fast = place.member % T::kSide * T::kRun, slow = place.member / T::kSide * T::kRun;
    first_row = by_rows ? slow : fast;
    first_column = by_rows ? fast : slow;
  }

  SUMPROD_DEVICE int row(int r) const { return first_row + r / T::kRun * (T::kRun * T::kSide) + r % T::kRun; }
  SUMPROD_DEVICE int column(int c) const { return first_column + c / T::kRun * (T::kRun * T::kSide) + c % T::kRun; }
  SUMPROD_DEVICE bool exists(int r, int c) const { return row(r) < rows && column(c) < columns; }
  SUMPROD_DEVICE int64_t offset(int r, int c) const { return row(r) * row_stride + column(c) * column_stride; }

  // f(r, c, offset) for the thread's elements that exist.
  template <class F>
  SUMPROD_DEVICE void for_each(F f) const {
    const int zero = unknown_zero(), row0 = first_row + zero, column0 = first_column + zero;
#pragma unroll
    for (int r = 0; r < T::kEach; ++r) {
      const int i = row0 + row(r) - first_row;
      if (i >= rows) continue;
#pragma unroll
      for (int c = 0; c < T::kEach; ++c) {
        const int k = column0 + column(c) - first_column;
        if (k < columns) f(r, c, i * row_stride + k * column_stride);
      }
    }
  }

  // Stores value(r, c), several at once where the memory allows.
  template <class F>
  SUMPROD_DEVICE void store(F value) const {
    if (by_rows) {
      store_lines<true>([&](int r, int c) { return value(r, c); });
    } else {
      store_lines<false>([&](int c, int r) { return value(r, c); });
    }
  }

 private:
  // Lines are rows or columns; value(line, place in it).
  template <bool kByRows, class F>
  SUMPROD_DEVICE void store_lines(F value) const {
    const int64_t stride = kByRows ? row_stride : column_stride;
    const auto address = uint64_t(reinterpret_cast<uintptr_t>(data));
    const bool aligned = (address | uint64_t(stride) * sizeof(Value)) % alignof(Run<Value, T::kRun>) == 0;
#pragma unroll
    for (int line = 0; line < T::kEach; ++line) {
      const int l = kByRows ? row(line) : column(line);
      if (l >= (kByRows ? rows : columns)) continue;
#pragma unroll
      for (int q = 0; q < T::kEach; q += T::kRun) {
        const int from = kByRows ? column(q) : row(q), left = (kByRows ? columns : rows) - from;
        Value* to = data + l * stride + from;
        Run<Value, T::kRun> run;
#pragma unroll
        for (int i = 0; i < T::kRun; ++i) run.at[i] = value(line, q + i);
        if (aligned && left >= T::kRun) {
          *reinterpret_cast<Run<Value, T::kRun>*>(to) = run;
        } else {
#pragma unroll
          for (int i = 0; i < T::kRun; ++i) {
            if (i < left) to[i] = run.at[i];
          }
        }
      }
    }
  }
};

// The entries at one depth that a thread multiplies.
template <class T>
SUMPROD_DEVICE void read_entries(const typename T::Real* shared, typename T::Real (&entries)[T::kEach]) {
#pragma unroll
  for (int q = 0; q < T::kEach; q += T::kRun) {
    const auto run = *reinterpret_cast<const Run<typename T::Real, T::kRun>*>(shared + q * T::kSide);
#pragma unroll
    for (int i = 0; i < T::kRun; ++i) entries[q + i] = run.at[i];
  }
}

// Calls f(r, c, left, right, d) for all of the thread's elements and kDepth entries.
template <class T, class Result, class F>
SUMPROD_DEVICE void for_products(const Result& result, const typename T::Real* left, const typename T::Real* right,
                                 F f) {
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    typename T::Real a[T::kEach], b[T::kEach];
    read_entries<T>(left + d * T::kStride + result.first_row, a);
    read_entries<T>(right + d * T::kStride + result.first_column, b);
#pragma unroll
    for (int r = 0; r < T::kEach; ++r) {
#pragma unroll
      for (int c = 0; c < T::kEach; ++c) f(r, c, a[r], b[c], d);
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
                   result.for_each([&](int r, int c, int64_t offset) {
                     Real* total = result.data + offset;
                     *total = fresh ? sum[r][c] : *total + sum[r][c];
                     sum[r][c] = Real(0);
                   });
                 }
                 for_products<T>(result, a, b, [&](int r, int c, Real x, Real y, int) { sum[r][c] += x * y; });
               });
  if (left.depth > kSummed) {
    result.for_each([&](int r, int c, int64_t offset) { sum[r][c] += result.data[offset]; });
  }
}

}  // namespace sumprod::gpu
