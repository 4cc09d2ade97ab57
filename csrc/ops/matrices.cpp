#include "ops/matrices.h"

#include <algorithm>
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
std::vector<int64_t> offsets_of(const Tensor& t, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> offsets{0};
  for (size_t outer = 0; outer < sizes.size(); ++outer) {
    const auto d = static_cast<int64_t>(sizes.size() - 1 - outer);
    std::vector<int64_t> next;
    next.reserve(offsets.size() * static_cast<size_t>(sizes[outer]));
    for (int64_t start : offsets) {
      for (int64_t i = 0; i < sizes[outer]; ++i) next.push_back(start + i * batch_stride(t, d));
    }
    offsets = std::move(next);
  }
  return offsets;
}

}  // namespace

MatrixInputs::MatrixInputs(const char* op, const Tensor& x, const Tensor& y) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::Double) && y.scalar_type() == dtype,
                  "sumprod::", op, ": x and y must both be float32 or both be float64");
  STD_TORCH_CHECK(x.dim() >= 2 && y.dim() >= 2 && x.size(x.dim() - 1) == y.size(y.dim() - 2), "sumprod::", op,
                  ": expected x [*, I, J] and y [*, J, K], got ", shape_of(x), " and ", shape_of(y));
  for (int64_t d = std::max(x.dim(), y.dim()) - 3; d >= 0; --d) {
    const int64_t a = batch_size(x, d), b = batch_size(y, d);
    STD_TORCH_CHECK(a == b || a == 1 || b == 1, "sumprod::", op, ": the batch dims of x ", shape_of(x), " and y ",
                    shape_of(y), " do not broadcast");
    batch_sizes.push_back(a == 1 ? b : a);
  }
  x_offsets_ = offsets_of(x, batch_sizes);
  y_offsets_ = offsets_of(y, batch_sizes);
  problem.batch = static_cast<int64_t>(x_offsets_.size());
  problem.rows = x.size(x.dim() - 2);
  problem.inner = x.size(x.dim() - 1);
  problem.columns = y.size(y.dim() - 1);
  problem.x = {x.const_data_ptr(), x_offsets_.data(), x.stride(x.dim() - 2), x.stride(x.dim() - 1)};
  problem.y = {y.const_data_ptr(), y_offsets_.data(), y.stride(y.dim() - 2), y.stride(y.dim() - 1)};
  problem.is_double = dtype == ScalarType::Double;
}

Tensor MatrixInputs::matrices(const Tensor& like, int64_t rows, int64_t columns) const {
  std::vector<int64_t> sizes = batch_sizes;
  sizes.push_back(rows);
  sizes.push_back(columns);
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
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
