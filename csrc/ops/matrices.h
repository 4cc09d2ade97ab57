// Checks two batches of matrices, broadcasts their batch dims, and spreads tiles over threads.
#pragma once

#include <functional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "core/matrix_problem.h"

namespace sumprod {

using torch::stable::Tensor;

class MatrixInputs {
 public:
  // x [*, I, J] and y [*, J, K] with batch dims that broadcast. Throws what a user of torch.ops can cause.
  MatrixInputs(const char* op, const Tensor& x, const Tensor& y);
  MatrixInputs(const MatrixInputs&) = delete;

  MatrixProblem problem;  // without the lists of offsets
  MatrixBatch batch;
  std::vector<int64_t> batch_sizes;

  // An uninitialised tensor [*batch, rows, columns].
  Tensor matrices(const Tensor& like, int64_t rows, int64_t columns) const;

  // `t`, which must have as many elements as the product and the dtype of x, contiguous.
  Tensor product_argument(const char* op, const char* name, const Tensor& t) const;
  // Kernels that find an index keep it in 32 bits.
  void require_short_inner(const char* op) const;

 private:
  void collect_batch(const Tensor& x, const Tensor& y);
};

// The problem as kernels on the CPU want it: with a list of where each matrix starts.
class ListedMatrices {
 public:
  explicit ListedMatrices(const MatrixInputs& in);
  ListedMatrices(const ListedMatrices&) = delete;

  MatrixProblem problem;

 private:
  std::vector<int64_t> x_offsets_, y_offsets_;
};

// Calls kernel(begin, end, workspace) for ranges of the tiles of `grid`, each of which takes about
// `depth` multiply-adds per element.
void run_tiles(const TileGrid& grid, int64_t depth, int64_t workspace_bytes,
               const std::function<void(int64_t, int64_t, void*)>& kernel);

}  // namespace sumprod
