// Turns a tensor and the dims to reduce into a SliceProblem, and spreads its work over threads.
#pragma once

#include <functional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "core/slices.h"

namespace sumprod {

using torch::stable::Tensor;

class SliceInputs {
 public:
  // `output`, where given, has the input's shape. Throws what a user of torch.ops can cause.
  SliceInputs(const char* op, const Tensor& input, const std::vector<int64_t>& dims, const Tensor* output = nullptr);

  // The shape of one entry per slice.
  std::vector<int64_t> result_sizes(bool keepdim) const;

  SliceProblem problem;
  bool empty() const { return problem.kept.count == 0 || problem.reduced.count == 0; }

 private:
  void add_loops(const Tensor& input, const Tensor* output);
  std::vector<int64_t> sizes_;
  std::vector<char> is_reduced_;
};

// Entries of one item of a plan, on average.
double entries_per_item(const SliceProblem& problem, const SlicePlan& plan);

// Calls work(begin, end, worker) for ranges of `items`, each `entries` long.
void run_slices(int64_t items, double entries, int workers, const std::function<void(int64_t, int64_t, int)>& work);

// Threads worth using for this many entries.
int slice_workers(int64_t items, double entries);

}  // namespace sumprod
