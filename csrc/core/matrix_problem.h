// A batch of products of strided matrices, x [rows, inner] and y [inner, columns], cut into tiles.
// Shared by CPU and CUDA. Strides are in elements; a batch dim that is shared has offset 0.
#pragma once

#include <stdint.h>

namespace sumprod {

struct MatrixOperand {
  const void* data;
  const int64_t* offsets;  // on the CPU: where each batch element's matrix starts; GPUs have MatrixBatch instead
  int64_t row_stride, column_stride;
};

struct MatrixProblem {
  int64_t batch, rows, inner, columns;
  MatrixOperand x, y;
  bool is_double;
};

// The batch dims of a problem, outermost first: a list of offsets that kernels for GPUs take by value. Dims of size 1
// are left out, so that there is room for all that a tensor can have.
constexpr int kMostBatchDims = 62;
struct MatrixBatch {
  struct Operand {
    int64_t stride[kMostBatchDims];   // in elements; 0 where the dim is broadcast
    int64_t spacing[kMostBatchDims];  // the same when the distinct matrices are counted one by one
    int64_t distinct;                 // matrices
  };
  int dims;
  int64_t size[kMostBatchDims];
  Operand x, y;
};

// Largest tile of a result on the CPU; a multiple of every register block.
constexpr int64_t kTileRows = 192, kTileColumns = 192;

// A batch of [rows, columns] matrices cut into equal tiles, numbered batch element by batch element.
struct TileGrid {
  int64_t batch, rows, columns;

  static constexpr int64_t cuts(int64_t n, int64_t most) { return n == 0 ? 0 : (n + most - 1) / most; }
  constexpr int64_t per_matrix() const { return cuts(rows, kTileRows) * cuts(columns, kTileColumns); }
  constexpr int64_t count() const { return batch * per_matrix(); }
};

}  // namespace sumprod
