#include "ops/hmm_groups.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace sumprod {

namespace {

// Idle lane steps, relative to the real ones, that sorting by length may leave.
constexpr double kIdle = 0.06;

using Lane = std::vector<HmmSegment>;

int64_t aligned(int64_t step) { return (step + kHmmSegmentAlign - 1) / kHmmSegmentAlign * kHmmSegmentAlign; }

int64_t end_of(const HmmProblem& problem, const Lane& lane) {
  return lane.empty() ? 0 : lane.back().start + length_of(problem, lane.back().sequence);
}

// Lane steps that groups of `width` lanes take when a lane ends after ends(k) steps.
template <class Ends>
int64_t lane_steps(int64_t lanes, int width, Ends ends) {
  int64_t total = 0;
  for (int64_t k = 0; k < lanes; k += width) total += ends(k) * width;
  return total;
}

// Longest first, each sequence goes to the lane that is free first (Graham 1969); as many lanes
// as make them about as long as the longest sequence.
std::vector<Lane> refilled_lanes(const HmmProblem& problem, const std::vector<int64_t>& sequences, int width,
                                 int64_t real_steps) {
  const int64_t longest = length_of(problem, sequences[0]);
  const double wanted = static_cast<double>(real_steps) / static_cast<double>(longest * width);
  const int64_t groups = wanted < 1.5 ? 1 : std::max<int64_t>(2, static_cast<int64_t>(wanted));
  std::vector<Lane> lanes(static_cast<size_t>(groups * width));
  using Free = std::pair<int64_t, size_t>;  // step, lane
  std::priority_queue<Free, std::vector<Free>, std::greater<>> queue;
  for (size_t lane = 0; lane < lanes.size(); ++lane) queue.emplace(0, lane);
  for (int64_t sequence : sequences) {
    const auto [step, lane] = queue.top();
    queue.pop();
    const int64_t start = aligned(step);
    lanes[lane].push_back({sequence, start, 0});
    queue.emplace(start + length_of(problem, sequence), lane);
  }
  std::stable_sort(lanes.begin(), lanes.end(),
                   [&](const Lane& a, const Lane& b) { return end_of(problem, a) > end_of(problem, b); });
  while (lanes.back().empty()) lanes.pop_back();
  return lanes;
}

}  // namespace

HmmGroup HmmGroups::group(int64_t g) const {
  const auto at = static_cast<size_t>(g);
  return {segments.data() + first[at], first[at + 1] - first[at], steps[at]};
}

HmmGroups make_groups(const HmmProblem& problem, const std::vector<int64_t>& sequences, int width, bool refill) {
  const auto count = static_cast<int64_t>(sequences.size());
  const auto length = [&](int64_t k) { return length_of(problem, sequences[static_cast<size_t>(k)]); };
  std::vector<Lane> lanes;
  if (refill && width > 1) {
    int64_t real = 0;
    for (int64_t k = 0; k < count; ++k) real += length(k);
    const int64_t sorted = lane_steps(count, width, length);
    if (static_cast<double>(sorted) > (1.0 + kIdle) * static_cast<double>(real)) {
      lanes = refilled_lanes(problem, sequences, width, real);
      const int64_t refilled = lane_steps(static_cast<int64_t>(lanes.size()), width,
                                          [&](int64_t k) { return end_of(problem, lanes[static_cast<size_t>(k)]); });
      if (refilled >= sorted) lanes.clear();
    }
  }
  HmmGroups groups;
  groups.segments.reserve(sequences.size());
  const int64_t used = lanes.empty() ? count : static_cast<int64_t>(lanes.size());
  for (int64_t k = 0; k < used; k += width) {
    const auto begin = static_cast<int64_t>(groups.segments.size());
    for (int64_t l = k; l < std::min<int64_t>(k + width, used); ++l) {
      if (lanes.empty()) {
        groups.segments.push_back({sequences[static_cast<size_t>(l)], 0, static_cast<int>(l - k)});
        continue;
      }
      for (HmmSegment segment : lanes[static_cast<size_t>(l)]) {
        segment.lane = static_cast<int>(l - k);
        groups.segments.push_back(segment);
      }
    }
    groups.first.push_back(begin);
    groups.steps.push_back(lanes.empty() ? length(k) : end_of(problem, lanes[static_cast<size_t>(k)]));
    groups.most_segments = std::max(groups.most_segments, static_cast<int64_t>(groups.segments.size()) - begin);
    groups.most_steps = std::max(groups.most_steps, groups.steps.back());
  }
  groups.first.push_back(static_cast<int64_t>(groups.segments.size()));
  return groups;
}

}  // namespace sumprod
