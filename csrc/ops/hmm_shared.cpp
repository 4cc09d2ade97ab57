#include "ops/hmm_shared.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "ops/hmm_groups.h"
#include "ops/parallel.h"
#include "ops/workspace.h"

namespace sumprod {

namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr double kWorthAThread = 2e5;

// A lane group of many sequences costs about this much more than one sequence on its own
// (measured between 5 at 16 states and 10 at 64), so small batches run by state.
constexpr double kGroupCost = 6.0;

// Ties by index, so that the order is a function of the set.
void sort_by_falling_length(const HmmProblem& problem, std::vector<int64_t>& sequences) {
  if (problem.lengths == nullptr) return std::sort(sequences.begin(), sequences.end());
  std::sort(sequences.begin(), sequences.end(), [&](int64_t a, int64_t b) {
    return problem.lengths[a] != problem.lengths[b] ? problem.lengths[a] > problem.lengths[b] : a < b;
  });
}

std::vector<int64_t> by_falling_length(const HmmProblem& problem) {
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(problem.batch));
  for (int64_t b = 0; b < problem.batch; ++b) {
    if (length_of(problem, b) > 0) order.push_back(b);
  }
  sort_by_falling_length(problem, order);
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
  const int width = lanes_per_group(problem, run, tier, layout);
  const HmmGroups groups = make_groups(problem, sequences, width, has_shared_transition(problem) && problem.steps > 1);
  const int64_t units = std::min(groups.count(), run.max_units);
  const int workers = multiply_adds(problem, sequences) < kWorthAThread ? 1 : worker_count(units);

  const auto task_of = [&](const HmmGroup& group, int64_t unit) {
    return HmmTask{&problem, &shared, tier, layout, group, unit, run.outputs, nullptr, nullptr};
  };
  const Workspace workspace(workers, run.kernel(task_of(groups.largest(), 0)));
  const std::unique_ptr<bool[]> redo(new bool[sequences.size()]());

  parallel_run(units, workers, [&](int64_t unit, int worker) {
    for (int64_t g = unit; g < groups.count(); g += units) {
      HmmTask task = task_of(groups.group(g), unit);
      task.workspace = workspace.of(worker);
      task.redo = redo.get() + groups.first[static_cast<size_t>(g)];
      run.kernel(task);
    }
  });
  std::vector<int64_t> again;
  for (size_t k = 0; k < sequences.size(); ++k) {
    if (redo[k]) again.push_back(groups.segments[k].sequence);
  }
  sort_by_falling_length(problem, again);
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
