#include "gpu/hmm_pieces.h"

#include <cmath>

#include "gpu/hmm_carry.cuh"

#if defined(SUMPROD_EMULATED_GPU)
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#endif

namespace sumprod::gpu {

namespace {

// Crossovers: estimated; to be measured on a GPU.
constexpr int64_t kMostDividedStates = 64;
constexpr int64_t kLeastDividedSteps = 2048;        // below, launches and phase 2 take as long as the recursion
constexpr int64_t kThreadsPerMultiprocessor = 512;  // that the recursion's registers leave room for
constexpr int64_t kLeastGain = 4;                   // pieces of a sequence at work per state
constexpr int64_t kLeastPieceSteps = 32;            // what the start of a block costs
constexpr double kCarryCost = 2.0;                  // one place of a carry, per level, in steps of the recursion
constexpr int64_t kMostPiecesOneLevel = 24;

int64_t group_threads(int64_t states) { return states <= 8 ? 8 : (states <= 16 ? 16 : (states <= 32 ? 32 : 128)); }

HmmDivision divided(int64_t steps, int64_t piece, int64_t range) {
  const int64_t pieces = ceil_of(steps, piece);
  return {piece, pieces, range, ceil_of(pieces, range)};
}

}  // namespace

bool forced_pieces(int64_t* steps, int64_t* range) {
#if defined(SUMPROD_EMULATED_GPU)
  if (const char* forced = getenv("SUMPROD_EMULATED_PIECES")) {
    if (sscanf(forced, "%" SCNd64 ",%" SCNd64, steps, range) != 2 || *steps < 1 || *range < 1) abort();
    return true;
  }
#endif
  return false;
}

// With C pieces, phases 1 and 3 take about T / C steps each and phase 2 about 3 sqrt(C) places; they balance at
// C^(3/2) = T / kCarryCost. More pieces than the GPU holds at once gain nothing.
HmmDivision divide_in_time(const HmmProblem& problem, const Stream& stream) {
  const HmmDivision whole = {problem.steps, 1, 1, 1};
  if (problem.states > kMostDividedStates || problem.batch == 0) return whole;
  int64_t forced = 0, forced_range = 0;
  if (forced_pieces(&forced, &forced_range)) {
    return problem.steps > forced ? divided(problem.steps, forced, forced_range) : whole;
  }
  const int64_t groups =
      properties_of(stream.device).multiprocessors * kThreadsPerMultiprocessor / group_threads(problem.states);
  const int64_t at_once = groups / (problem.batch * problem.states);
  if (problem.steps < kLeastDividedSteps || at_once < kLeastGain) return whole;
  const int64_t balanced = int64_t(std::pow(double(problem.steps) / kCarryCost, 2.0 / 3.0));
  const int64_t pieces = balanced < at_once ? balanced : at_once;
  const int64_t steps = ceil_of(problem.steps, pieces);
  const int64_t piece = steps < kLeastPieceSteps ? kLeastPieceSteps : steps;
  const int64_t count = ceil_of(problem.steps, piece);
  return divided(problem.steps, piece, count <= kMostPiecesOneLevel ? count : int64_t(std::sqrt(double(count))) + 1);
}

HmmPieceMemory::HmmPieceMemory(const HmmProblem& problem, const HmmDivision& division, void* base) {
  SharedArena arena(static_cast<unsigned char*>(base));
  const int64_t states = problem.states;
  const auto transfers = [&](int64_t count) {
    const int64_t all = problem.batch * count;
    return HmmTransfers{arena.take<double>(all * states * states), arena.take<double>(all * states),
                        arena.take<double>(all), count};
  };
  const auto starts = [&](int64_t count) {
    const int64_t all = problem.batch * count;
    return HmmStarts{arena.take<double>(all * states), arena.take<double>(all), arena.take<double>(all * states)};
  };
  pieces = {division.steps, division.pieces, transfers(division.pieces), starts(division.pieces),
            arena.take<uint8_t>(problem.batch)};
  range_transfers = transfers(division.ranges);
  range_starts = starts(division.ranges);
  bytes = arena.used();
}

int64_t divided_scratch_bytes(const HmmProblem& problem, const Stream& stream) {
  const HmmDivision division = divide_in_time(problem, stream);
  return division.pieces == 1 ? 0 : HmmPieceMemory(problem, division, nullptr).bytes;
}

namespace {

template <class A>
void carry_along(const HmmCarry& carry, const Stream& stream) {
  const HmmDivision& d = carry.division;
  const HmmPieces& pieces = carry.memory.pieces;
  CarryTask task = {};
  task.problem = carry.problem;
  task.redo = carry.redo;
  task.watched = pieces.watched;
  task.backward = carry.backward;
  task.from = pieces.transfers;
  task.place_steps = d.steps;
  task.range = d.range;
  task.ranges = d.ranges;
  if (d.ranges > 1) {
    task.into = carry.memory.range_transfers;
    launch_carry<A>(task, stream);
    task.into = {};
  }
  CarryTask chain = task;
  chain.decides = true;
  chain.total = carry.total;
  if (d.ranges > 1) {
    chain.from = carry.memory.range_transfers;
    chain.place_steps = d.steps * d.range;
  }
  chain.range = chain.from.count;
  chain.ranges = 1;
  if (carry.starts) chain.starts = d.ranges > 1 ? carry.memory.range_starts : pieces.starts;
  launch_carry<A>(chain, stream);
  if (d.ranges == 1 || !carry.starts) return;
  task.given = carry.memory.range_starts;
  task.starts = pieces.starts;
  launch_carry<A>(task, stream);
}

}  // namespace

void carry_messages(const HmmCarry& carry, const Stream& stream) {
  if (carry.max_plus) return carry_along<CarryMaxPlus>(carry, stream);
  carry_along<CarryLinear>(carry, stream);
}

}  // namespace sumprod::gpu
