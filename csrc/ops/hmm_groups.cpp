#include "ops/hmm_groups.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace sumprod {

namespace {

// Idle lane steps, relative to the real ones, that sorting by length may leave.
constexpr double kIdle = 0.06;

// Sequences in lanes, and where each lane ends.
struct Lanes {
  std::vector<HmmSegment> segments;  // in each lane in the order of time
  std::vector<int64_t> ends;
};

int64_t aligned(int64_t step) { return (step + kHmmSegmentAlign - 1) / kHmmSegmentAlign * kHmmSegmentAlign; }

// One sequence per lane.
Lanes sorted_lanes(const HmmProblem& problem, const std::vector<int64_t>& sequences) {
  Lanes lanes;
  lanes.segments.reserve(sequences.size());
  lanes.ends.reserve(sequences.size());
  for (int64_t sequence : sequences) {
    lanes.segments.push_back({sequence, 0, static_cast<int>(lanes.ends.size())});
    lanes.ends.push_back(length_of(problem, sequence));
  }
  return lanes;
}

// Longest first, each sequence goes to the lane that is free first (Graham 1969); as many lanes
// as make them about as long as the longest sequence. Lanes come by falling end.
Lanes refilled_lanes(const HmmProblem& problem, const std::vector<int64_t>& sequences, int width, int64_t real_steps) {
  const int64_t longest = length_of(problem, sequences[0]);
  const double wanted = static_cast<double>(real_steps) / static_cast<double>(longest * width);
  const int64_t groups = wanted < 1.5 ? 1 : std::max<int64_t>(2, static_cast<int64_t>(wanted));
  using Free = std::pair<int64_t, int>;  // step, lane
  std::vector<Free> queue;
  for (int lane = 0; lane < groups * width; ++lane) queue.emplace_back(0, lane);  // a heap as it is
  std::vector<HmmSegment> placed;
  placed.reserve(sequences.size());
  for (int64_t sequence : sequences) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    auto& [step, lane] = queue.back();
    placed.push_back({sequence, aligned(step), lane});
    step = placed.back().start + length_of(problem, sequence);
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  }
  std::sort(queue.begin(), queue.end(),
            [](const Free& a, const Free& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  Lanes lanes;
  std::vector<int> rank(queue.size());
  for (const auto& [end, lane] : queue) {
    rank[static_cast<size_t>(lane)] = static_cast<int>(lanes.ends.size());
    if (end > 0) lanes.ends.push_back(end);
  }
  for (HmmSegment& segment : placed) segment.lane = rank[static_cast<size_t>(segment.lane)];
  std::sort(placed.begin(), placed.end(), [](const HmmSegment& a, const HmmSegment& b) {
    return a.lane != b.lane ? a.lane < b.lane : a.start < b.start;
  });
  lanes.segments = std::move(placed);
  return lanes;
}

// Steps of all lanes, idle ones too, when `width` of them run together.
int64_t lane_steps(const Lanes& lanes, int width) {
  int64_t total = 0;
  for (size_t k = 0; k < lanes.ends.size(); k += static_cast<size_t>(width)) total += lanes.ends[k] * width;
  return total;
}

}  // namespace

HmmGroup HmmGroups::group(int64_t g) const {
  const auto at = static_cast<size_t>(g);
  return {segments.data() + first[at], first[at + 1] - first[at], steps[at]};
}

HmmGroups make_groups(const HmmProblem& problem, const std::vector<int64_t>& sequences, int width, bool refill) {
  Lanes lanes = sorted_lanes(problem, sequences);
  if (refill && width > 1) {
    int64_t real = 0;
    for (int64_t end : lanes.ends) real += end;
    const int64_t sorted = lane_steps(lanes, width);
    if (static_cast<double>(sorted) > (1.0 + kIdle) * static_cast<double>(real)) {
      Lanes refilled = refilled_lanes(problem, sequences, width, real);
      if (lane_steps(refilled, width) < sorted) lanes = std::move(refilled);
    }
  }
  HmmGroups groups;
  groups.segments = std::move(lanes.segments);
  auto segment = groups.segments.begin();
  for (int lane = 0; lane < static_cast<int>(lanes.ends.size()); lane += width) {
    const int64_t begin = segment - groups.segments.begin();
    for (; segment != groups.segments.end() && segment->lane < lane + width; ++segment) segment->lane -= lane;
    groups.first.push_back(begin);
    groups.steps.push_back(lanes.ends[static_cast<size_t>(lane)]);
    groups.most_segments = std::max(groups.most_segments, (segment - groups.segments.begin()) - begin);
    groups.most_steps = std::max(groups.most_steps, groups.steps.back());
  }
  groups.first.push_back(static_cast<int64_t>(groups.segments.size()));
  return groups;
}

}  // namespace sumprod
