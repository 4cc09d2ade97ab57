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

  MatrixProblem problem;
  std::vector<int64_t> batch_sizes;

  // An uninitialised tensor [*batch, rows, columns].
  Tensor matrices(const Tensor& like, int64_t rows, int64_t columns) const;

 private:
  std::vector<int64_t> x_offsets_, y_offsets_;
};

// Calls kernel(begin, end, workspace) for ranges of the tiles of `grid`, each of which takes about
// `depth` multiply-adds per element.
void run_tiles(const TileGrid& grid, int64_t depth, int64_t workspace_bytes,
               const std::function<void(int64_t, int64_t, void*)>& kernel);

}  // namespace sumprod
