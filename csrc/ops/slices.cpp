#include "ops/slices.h"

#include <algorithm>
#include <string>

#include "ops/parallel.h"

namespace sumprod {

namespace {

using torch::headeronly::ScalarType;

// Fewer entries than this are not worth another thread, nor a unit of work of their own.
constexpr double kEntriesPerUnit = 16384.0;

SliceType type_of(const char* op, const Tensor& input) {
  switch (input.scalar_type()) {
    case ScalarType::Float:
      return SliceType::float32;
    case ScalarType::Double:
      return SliceType::float64;
    case ScalarType::Half:
      return SliceType::float16;
    case ScalarType::BFloat16:
      return SliceType::bfloat16;
    default:
      STD_TORCH_CHECK(false, "sumprod::", op, ": the input must be float32, float64, float16 or bfloat16");
  }
}

struct Dim {
  int64_t size;
  int64_t stride[kOperands];
};

// Drops dims of size 1 and merges neighbours that are one stride apart in every array.
void fill_loop(const std::vector<Dim>& dims, SliceLoop& loop) {
  loop.dims = 0;
  loop.count = 1;
  for (const Dim& dim : dims) {
    loop.count *= dim.size;
    if (dim.size == 1) continue;
    const int last = loop.dims - 1;
    bool merges = last >= 0;
    for (int k = 0; merges && k < kOperands; ++k) merges = loop.stride[k][last] == dim.stride[k] * dim.size;
    const int at = merges ? last : loop.dims++;
    loop.size[at] = merges ? loop.size[at] * dim.size : dim.size;
    for (int k = 0; k < kOperands; ++k) loop.stride[k][at] = dim.stride[k];
  }
}

}  // namespace

SliceInputs::SliceInputs(const char* op, const Tensor& input, const std::vector<int64_t>& dims, const Tensor* output) {
  const int64_t rank = input.dim(), wrap = std::max<int64_t>(rank, 1);
  STD_TORCH_CHECK(rank <= kMaxDims, "sumprod::", op, ": at most ", kMaxDims, " dims, got ", rank);
  STD_TORCH_CHECK(!dims.empty() || rank == 0, "sumprod::", op, ": dim must name at least one dim");
  sizes_.assign(input.sizes().begin(), input.sizes().end());
  is_reduced_.assign(static_cast<size_t>(wrap), 0);
  for (int64_t d : dims) {
    STD_TORCH_CHECK(d >= -wrap && d < wrap, "sumprod::", op, ": Dimension out of range (expected to be in range of [",
                    -wrap, ", ", wrap - 1, "], but got ", d, ")");
    char& flag = is_reduced_[static_cast<size_t>(d < 0 ? d + wrap : d)];
    STD_TORCH_CHECK(!flag, "sumprod::", op, ": dim ", d, " appears multiple times in the list of dims");
    flag = 1;
  }
  problem.input = input.const_data_ptr();
  problem.type = type_of(op, input);
  problem.has_output = output != nullptr;
  add_loops(input, output);
}

void SliceInputs::add_loops(const Tensor& input, const Tensor* output) {
  std::vector<Dim> kept, reduced;
  for (size_t d = 0; d < sizes_.size(); ++d) {
    const auto dim = static_cast<int64_t>(d);
    (is_reduced_[d] ? reduced : kept).push_back({sizes_[d], {input.stride(dim), 0, output ? output->stride(dim) : 0}});
  }
  int64_t slices = 1;
  for (auto dim = kept.rbegin(); dim != kept.rend(); ++dim) {
    dim->stride[kResult] = slices;
    slices *= dim->size;
  }
  // Slices may be visited in any order: the one that memory likes.
  std::stable_sort(kept.begin(), kept.end(),
                   [](const Dim& a, const Dim& b) { return a.stride[kInput] > b.stride[kInput]; });
  fill_loop(kept, problem.kept);
  fill_loop(reduced, problem.reduced);
}

std::vector<int64_t> SliceInputs::result_sizes(bool keepdim) const {
  std::vector<int64_t> result;
  for (size_t d = 0; d < sizes_.size(); ++d) {
    if (!is_reduced_[d]) {
      result.push_back(sizes_[d]);
    } else if (keepdim) {
      result.push_back(1);
    }
  }
  return result;
}

double entries_per_item(const SliceProblem& problem, const SlicePlan& plan) {
  return static_cast<double>(problem.reduced.count * plan.slices_per_group) / static_cast<double>(plan.chunks);
}

int slice_workers(int64_t items, double entries) {
  const double units = static_cast<double>(items) * entries / kEntriesPerUnit;
  return worker_count(std::min(items, static_cast<int64_t>(units)));
}

void run_slices(int64_t items, double entries, int workers, const std::function<void(int64_t, int64_t, int)>& work) {
  if (workers <= 1) return work(0, items, 0);
  const auto step = std::clamp<int64_t>(static_cast<int64_t>(kEntriesPerUnit / std::max(entries, 1.0)), 1, items);
  parallel_run((items + step - 1) / step, workers,
               [&](int64_t unit, int worker) { work(unit * step, std::min(items, (unit + 1) * step), worker); });
}

}  // namespace sumprod
