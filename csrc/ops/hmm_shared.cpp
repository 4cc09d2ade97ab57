#include "ops/hmm_shared.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "ops/parallel.h"
#include "ops/workspace.h"

namespace sumprod {

namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr double kWorthAThread = 2e5;

// A lane group of many sequences costs about this much more than one sequence on its own
// (measured between 5 at 16 states and 10 at 64), so small batches run by state.
constexpr double kGroupCost = 6.0;

std::vector<int64_t> by_falling_length(const HmmProblem& problem) {
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(problem.batch));
  for (int64_t b = 0; b < problem.batch; ++b) {
    if (length_of(problem, b) > 0) order.push_back(b);
  }
  if (problem.lengths != nullptr) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return problem.lengths[a] > problem.lengths[b]; });
  }
  return order;
}

bool is_double_tier(HmmTier tier) { return tier == HmmTier::extended_double || tier == HmmTier::max_plus_double; }

int lanes_per_group(const HmmProblem& problem, const HmmRun& run, HmmTier tier, HmmLayout layout) {
  if (run.by_state || problem.transition_batch != 0 || layout == HmmLayout::lane_is_state) return 1;
  const bool wide = problem.is_double || is_double_tier(tier);
  return vector_bytes(isa_in_use()) / (wide ? 8 : 4);
}

// Independent of the number of threads, so that sums over groups are added in one order.
HmmLayout choose_layout(const HmmProblem& problem, const HmmRun& run, int64_t sequences) {
  if (run.by_state || problem.transition_batch != 0) return HmmLayout::lane_is_state;
  const int width = lanes_per_group(problem, run, HmmTier::linear, HmmLayout::lane_is_sequence);
  const auto groups = static_cast<double>((sequences + width - 1) / width);
  return static_cast<double>(sequences) < kGroupCost * groups ? HmmLayout::lane_is_state : HmmLayout::lane_is_sequence;
}

double multiply_adds(const HmmProblem& problem, const std::vector<int64_t>& sequences) {
  double steps = 0.0;
  for (int64_t b : sequences) steps += static_cast<double>(length_of(problem, b));
  return steps * static_cast<double>(problem.states) * static_cast<double>(problem.states + 8);
}

// Runs one tier over `sequences`; returns those to be run again, in the same order.
std::vector<int64_t> run_tier(const HmmProblem& problem, const HmmRun& run, HmmTier tier, HmmLayout layout,
                              const HmmShared& shared, const std::vector<int64_t>& sequences) {
  const auto count = static_cast<int64_t>(sequences.size());
  const int width = lanes_per_group(problem, run, tier, layout);
  const int64_t groups = (count + width - 1) / width;
  const int64_t units = std::min(groups, run.max_units);
  const int workers = multiply_adds(problem, sequences) < kWorthAThread ? 1 : worker_count(units);

  const auto task_of = [&](int64_t group, int64_t unit) {
    const int64_t first = group * width;
    return HmmTask{&problem,
                   &shared,
                   tier,
                   layout,
                   {sequences.data() + first, int(std::min<int64_t>(width, count - first))},
                   unit,
                   run.outputs,
                   nullptr,
                   nullptr};
  };
  // Groups are sorted by length, so the first needs the most room.
  const int64_t bytes = run.kernel(task_of(0, 0));
  const Workspace workspace(workers, bytes);
  const std::unique_ptr<bool[]> redo(new bool[static_cast<size_t>(count)]());

  parallel_run(units, workers, [&](int64_t unit, int worker) {
    for (int64_t group = unit; group < groups; group += units) {
      HmmTask task = task_of(group, unit);
      task.workspace = workspace.of(worker);
      task.redo = redo.get() + group * width;
      run.kernel(task);
    }
  });
  std::vector<int64_t> again;
  for (int64_t k = 0; k < count; ++k) {
    if (redo[static_cast<size_t>(k)]) again.push_back(sequences[static_cast<size_t>(k)]);
  }
  return again;
}

}  // namespace

bool has_shared_transition(const HmmProblem& problem) {
  return problem.transition_batch == 0 && problem.transition_time == 0;
}

void run_hmm(const HmmProblem& problem, const HmmRun& run) {
  std::vector<int64_t> sequences = by_falling_length(problem);
  std::vector<HmmTier> tiers = {HmmTier::linear, HmmTier::extended, HmmTier::extended_double};
  if (run.max_plus) tiers = {HmmTier::max_plus, HmmTier::max_plus_double};
  for (HmmTier tier : tiers) {
    if (sequences.empty()) return;
    const HmmLayout layout = is_double_tier(tier) ? HmmLayout::lane_is_sequence
                                                  : choose_layout(problem, run, static_cast<int64_t>(sequences.size()));
    HmmShared shared = {};
    HmmPreparation request{&problem, tier, layout, run.backward, nullptr, &shared};
    const auto prepare = SUMPROD_KERNEL(hmm_prepare);
    // A chain of one step has no transition to prepare.
    const bool prepared = has_shared_transition(problem) && problem.steps > 1;
    const Workspace storage(1, prepared ? prepare(request) : 0);
    if (prepared) {
      request.storage = storage.of(0);
      prepare(request);
    }
    sequences = run_tier(problem, run, tier, layout, shared, sequences);
  }
}

}  // namespace sumprod
