#include "ops/parallel.h"

#include <algorithm>
#include <atomic>

#include <torch/csrc/stable/ops.h>

namespace sumprod {

int worker_count(int64_t units) {
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(units, 1), torch::stable::get_num_threads()));
}

void parallel_run(int64_t units, int workers, const std::function<void(int64_t unit, int worker)>& body) {
  if (workers <= 1) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t unit = next++; unit < units; unit = next++) body(unit, static_cast<int>(worker));
    }
  });
}

}  // namespace sumprod
