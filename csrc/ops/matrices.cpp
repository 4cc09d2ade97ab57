#include "ops/matrices.h"

#include <algorithm>
#include <limits>
#include <string>

#include "ops/parallel.h"
#include "ops/workspace.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

// Fewer multiply-adds than this are not worth a unit of work of their own.
constexpr double kMultiplyAddsPerUnit = 2e5;

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

// Size and stride of batch dim d counted from the innermost; missing dims have size 1.
int64_t batch_size(const Tensor& t, int64_t d) { return d < t.dim() - 2 ? t.size(t.dim() - 3 - d) : 1; }
int64_t batch_stride(const Tensor& t, int64_t d) { return batch_size(t, d) == 1 ? 0 : t.stride(t.dim() - 3 - d); }

// Where the matrix of each batch element starts.
std::vector<int64_t> offsets_of(const MatrixBatch& batch, const MatrixBatch::Operand& operand) {
  std::vector<int64_t> offsets{0};
  for (int d = 0; d < batch.dims; ++d) {
    std::vector<int64_t> next;
    next.reserve(offsets.size() * static_cast<size_t>(batch.size[d]));
    for (int64_t start : offsets) {
      for (int64_t i = 0; i < batch.size[d]; ++i) next.push_back(start + i * operand.stride[d]);
    }
    offsets = std::move(next);
  }
  return offsets;
}

void count_distinct(const MatrixBatch& batch, MatrixBatch::Operand& operand) {
  operand.distinct = 1;
  for (int d = batch.dims - 1; d >= 0; --d) {
    operand.spacing[d] = operand.stride[d] == 0 ? 0 : operand.distinct;
    if (operand.stride[d] != 0) operand.distinct *= batch.size[d];
  }
}

}  // namespace

MatrixInputs::MatrixInputs(const char* op, const Tensor& x, const Tensor& y) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::Double) && y.scalar_type() == dtype,
                  "sumprod::", op, ": x and y must both be float32 or both be float64");
  STD_TORCH_CHECK(x.device() == y.device(), "sumprod::", op, ": x and y must be on the same device");
  STD_TORCH_CHECK(x.dim() >= 2 && y.dim() >= 2 && x.size(x.dim() - 1) == y.size(y.dim() - 2), "sumprod::", op,
                  ": expected x [*, I, J] and y [*, J, K], got ", shape_of(x), " and ", shape_of(y));
  for (int64_t d = std::max(x.dim(), y.dim()) - 3; d >= 0; --d) {
    const int64_t a = batch_size(x, d), b = batch_size(y, d);
    STD_TORCH_CHECK(a == b || a == 1 || b == 1, "sumprod::", op, ": the batch dims of x ", shape_of(x), " and y ",
                    shape_of(y), " do not broadcast");
    batch_sizes.push_back(a == 1 ? b : a);
  }
  collect_batch(x, y);
  problem.rows = x.size(x.dim() - 2);
  problem.inner = x.size(x.dim() - 1);
  problem.columns = y.size(y.dim() - 1);
  problem.x = {x.const_data_ptr(), nullptr, x.stride(x.dim() - 2), x.stride(x.dim() - 1)};
  problem.y = {y.const_data_ptr(), nullptr, y.stride(y.dim() - 2), y.stride(y.dim() - 1)};
  problem.is_double = dtype == ScalarType::Double;
}

// Neighbouring dims become one where both operands can step through them with one stride.
void MatrixInputs::collect_batch(const Tensor& x, const Tensor& y) {
  batch = {};
  problem.batch = 1;
  for (size_t outer = 0; outer < batch_sizes.size(); ++outer) {
    const auto d = static_cast<int64_t>(batch_sizes.size() - 1 - outer);
    const int64_t size = batch_sizes[outer], x_stride = batch_stride(x, d), y_stride = batch_stride(y, d);
    problem.batch *= size;
    if (size == 1) continue;
    const int last = batch.dims - 1;
    const bool merges = last >= 0 && batch.x.stride[last] == x_stride * size && batch.y.stride[last] == y_stride * size;
    const int at = merges ? last : batch.dims++;
    STD_TORCH_CHECK(at < kMostBatchDims, "sumprod: too many batch dims");
    batch.size[at] = merges ? batch.size[at] * size : size;
    batch.x.stride[at] = x_stride;
    batch.y.stride[at] = y_stride;
  }
  count_distinct(batch, batch.x);
  count_distinct(batch, batch.y);
}

Tensor MatrixInputs::matrices(const Tensor& like, int64_t rows, int64_t columns) const {
  std::vector<int64_t> sizes = batch_sizes;
  sizes.push_back(rows);
  sizes.push_back(columns);
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

Tensor MatrixInputs::product_argument(const char* op, const char* name, const Tensor& t) const {
  const int64_t elements = problem.batch * problem.rows * problem.columns;
  const ScalarType dtype = problem.is_double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(t.numel() == elements && t.scalar_type() == dtype, "sumprod::", op, ": ", name,
                  " must have the shape of the product, ", elements, " elements in the dtype of x, got ", t.numel());
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

void MatrixInputs::require_short_inner(const char* op) const {
  STD_TORCH_CHECK(problem.inner <= std::numeric_limits<int32_t>::max(), "sumprod::", op,
                  ": at most 2^31 - 1 terms, got ", problem.inner);
}

ListedMatrices::ListedMatrices(const MatrixInputs& in)
    : problem(in.problem), x_offsets_(offsets_of(in.batch, in.batch.x)), y_offsets_(offsets_of(in.batch, in.batch.y)) {
  problem.x.offsets = x_offsets_.data();
  problem.y.offsets = y_offsets_.data();
}

void run_tiles(const TileGrid& grid, int64_t depth, int64_t workspace_bytes,
               const std::function<void(int64_t, int64_t, void*)>& kernel) {
  const int64_t tiles = grid.count();
  if (tiles == 0) return;
  const double each = static_cast<double>(grid.batch) * static_cast<double>(grid.rows) *
                      static_cast<double>(grid.columns) * static_cast<double>(depth + 8) / static_cast<double>(tiles);
  const auto step = std::clamp<int64_t>(static_cast<int64_t>(kMultiplyAddsPerUnit / each), 1, tiles);
  const int64_t units = (tiles + step - 1) / step;
  const int workers = worker_count(units);
  const Workspace workspace(workers, workspace_bytes);
  parallel_run(units, workers, [&](int64_t unit, int worker) {
    kernel(unit * step, std::min(tiles, (unit + 1) * step), workspace.of(worker));
  });
}

}  // namespace sumprod
