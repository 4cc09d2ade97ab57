// How sequences are put together into groups of lanes.
#pragma once

#include <cstdint>
#include <vector>

#include "core/hmm_problem.h"

namespace sumprod {

struct HmmGroups {
  std::vector<HmmSegment> segments;  // of all groups, one group after the other
  std::vector<int64_t> first;        // group g has the segments first[g] .. first[g + 1] - 1
  std::vector<int64_t> steps;        // of each group's longest lane
  int64_t most_segments = 0, most_steps = 0;

  int64_t count() const { return static_cast<int64_t>(steps.size()); }
  HmmGroup group(int64_t g) const;
  // Stands for every group when room is asked for.
  HmmGroup largest() const { return {nullptr, most_segments, most_steps}; }
};

// Groups of `width` lanes for `sequences`, which come by falling length. With `refill`, lanes may
// take several sequences each. A function of the lengths alone, never of the number of threads.
HmmGroups make_groups(const HmmProblem& problem, const std::vector<int64_t>& sequences, int width, bool refill);

}  // namespace sumprod
