// Threads, taken from torch's own pool so that torch.set_num_threads governs them.
#pragma once

#include <cstdint>
#include <functional>

namespace sumprod {

// Number of workers that `units` pieces of work would be spread over.
int worker_count(int64_t units);

// Calls body(unit, worker) once for each unit in [0, units), on up to `workers` threads. Units are
// handed out in order as workers become free; the same worker never runs two at a time.
void parallel_run(int64_t units, int workers, const std::function<void(int64_t unit, int worker)>& body);

}  // namespace sumprod
