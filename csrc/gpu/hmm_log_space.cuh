// HMM recursions in log space with messages as absolute doubles: exact for every input, however far states lie apart.
//
// A block carries one sequence through time. Each state belongs to a team of neighbouring lanes, which share its sum
// over the other states; a team takes further states in turns when there are more states than teams. How sums are
// split depends on the number of states alone, never on strides or on what is shared, so that a sequence has the same
// bits in every batch and layout.
#pragma once

#include "core/hmm_problem.h"
#include "gpu/device.h"
#include "gpu/hmm_arithmetic.cuh"
#include "gpu/hmm_length.cuh"

namespace sumprod::gpu {

template <class Real>
SUMPROD_BOTH constexpr Real not_a_number() {
  return Real(__builtin_nan(""));
}

// The exponential of a difference of potentials, with the precision of the potentials.
template <class Real>
SUMPROD_DEVICE double exp_of(double x);
template <>
SUMPROD_DEVICE double exp_of<float>(double x) {
  return double(expf(float(x)));
}
template <>
SUMPROD_DEVICE double exp_of<double>(double x) {
  return exp(x);
}

// What may be subtracted from numbers of which x is the largest. +inf gives NaN, which is the right answer.
SUMPROD_DEVICE double shift_of(double x) { return x == -infinity<double>() ? 0.0 : x; }

// ---- teams --------------------------------------------------------------------------------------

constexpr int kTeamChunk = 8;  // entries of a matrix that a thread has in flight
constexpr int kMostTeamThreads = 512;

// `lanes` is a power of two up to 32; the threads of a block are whole warps.
struct HmmTeams {
  int threads, lanes;
};

// Estimated; to be measured on a GPU. Enough lanes that one chunk is all of a thread's work, if the block is large
// enough for that. `fewest` is for large matrices whose entries of one state lie side by side: eight lanes read a
// sector of 32 bytes together.
inline HmmTeams teams_for(int64_t states, int fewest = 1) {
  int64_t lanes = 1;
  while (states > lanes * kTeamChunk && states * lanes * 2 <= kMostTeamThreads) lanes *= 2;
  if (states > 8 * kTeamChunk && lanes < fewest) lanes = fewest;
  const int64_t threads = (states * lanes + kWarp - 1) / kWarp * kWarp;
  return {int(threads < kMostTeamThreads ? threads : kMostTeamThreads), int(lanes)};
}
inline HmmTeams forward_teams(int64_t states) { return teams_for(states); }
inline HmmTeams backward_teams(int64_t states) { return teams_for(states, 8); }

// One thread's place in its block, and its view of the transition matrices of one sequence. Forward, a team owns the
// state after a transition and adds up over the states before; backward, the other way round.
template <class Real>
class HmmTeam {
 public:
  SUMPROD_DEVICE HmmTeam(const HmmProblem& p, int64_t sequence, HmmTeams teams, bool backward)
      : matrix_(static_cast<const Real*>(p.transition) + sequence * p.transition_batch),
        time_(p.transition_time),
        own_(backward ? p.transition_from : p.transition_to),
        other_(backward ? p.transition_to : p.transition_from),
        states_(int(p.states)),
        lanes_(teams.lanes),
        lane_(int(threadIdx.x) % teams.lanes),
        team_(int(threadIdx.x) / teams.lanes),
        teams_(teams.threads / teams.lanes) {}

  // Turns that every team takes, and this team's state in a turn, which may be past the last one.
  SUMPROD_DEVICE int rounds() const { return (states_ + teams_ - 1) / teams_; }
  SUMPROD_DEVICE int state(int round) const { return team_ + round * teams_; }
  // Whether this thread speaks for its team in a turn.
  SUMPROD_DEVICE bool speaks(int round) const { return lane_ == 0 && state(round) < states_; }

  // Before the first step: reads ahead what fold() needs first.
  SUMPROD_DEVICE void start(int64_t step) { load(step, team_, 0, ahead_); }

  // Folds message[i] + matrix entry over the other states i. Met by all threads of the block; `next` is the step
  // that comes next, or negative.
  template <class Fold>
  SUMPROD_DEVICE Fold fold(int64_t step, int64_t next, int round, const double* message) {
    Fold fold;
    for (int base = 0; base < states_; base += kTeamChunk * lanes_) {
      Real entry[kTeamChunk];
      if (round == 0 && base == 0) {
#pragma unroll
        for (int k = 0; k < kTeamChunk; ++k) entry[k] = ahead_[k];
        if (time_ != 0 && next >= 0) load(next, team_, 0, ahead_);
      } else {
        load(step, state(round), base, entry);
      }
      double x[kTeamChunk];
#pragma unroll
      for (int k = 0; k < kTeamChunk; ++k) {
        const int i = base + lane_ + k * lanes_;
        x[k] = i < states_ ? message[i] + double(entry[k]) : -infinity<double>();
      }
      fold.add(x, base + lane_, lanes_);
    }
    fold.combine(lanes_);
    return fold;
  }

 private:
  SUMPROD_DEVICE void load(int64_t step, int state, int base, Real (&entry)[kTeamChunk]) const {
    const Real* p = matrix_ + step * time_ + state * own_;
#pragma unroll
    for (int k = 0; k < kTeamChunk; ++k) {
      const int i = base + lane_ + k * lanes_;
      entry[k] = i < states_ && state < states_ ? __ldg(p + i * other_) : Real(0);
    }
  }

  const Real* matrix_;
  const int64_t time_, own_, other_;
  const int states_, lanes_, lane_, team_, teams_;
  Real ahead_[kTeamChunk];
};

// ---- folds --------------------------------------------------------------------------------------

// Log-sum-exp: the largest term so far, and the sum relative to it. NaN and +inf give NaN.
template <class Real>
class LogSum {
 public:
  SUMPROD_DEVICE void add(const double (&x)[kTeamChunk], int, int) {
    double top = top_;
#pragma unroll
    for (int k = 0; k < kTeamChunk; ++k) top = x[k] > top ? x[k] : top;
    const double shift = shift_of(top);
    if (top > top_) sum_ *= exp_of<Real>(top_ - shift);
    top_ = top;
#pragma unroll
    for (int k = 0; k < kTeamChunk; ++k) sum_ += exp_of<Real>(x[k] - shift);
  }

  SUMPROD_DEVICE void combine(int lanes) {
    if (lanes == 1) return;
    const double top = warp_max(top_, lanes);
    sum_ *= exp_of<Real>(top_ - shift_of(top));
    sum_ = warp_sum(sum_, lanes);
    top_ = top;
  }

  SUMPROD_DEVICE double value() const { return shift_of(top_) + log(sum_); }

 private:
  double top_ = -infinity<double>(), sum_ = 0.0;
};

// The largest term, and the lowest index that has it. NaN and +inf make the value NaN.
class Best {
 public:
  SUMPROD_DEVICE void add(const double (&x)[kTeamChunk], int first, int stride) {
#pragma unroll
    for (int k = 0; k < kTeamChunk; ++k) add(x[k], first + k * stride);
  }

  SUMPROD_DEVICE void add(double x, int index) {
    invalid_ = invalid_ || !(x < infinity<double>());
    index_ = x > best_ ? index : index_;
    best_ = x > best_ ? x : best_;
  }

  SUMPROD_DEVICE void combine(int lanes) {
    for (int d = lanes / 2; d > 0; d /= 2) {
      const double x = __shfl_xor_sync(kFullWarp, best_, d);
      const int index = __shfl_xor_sync(kFullWarp, index_, d);
      const int invalid = __shfl_xor_sync(kFullWarp, int(invalid_), d);
      const bool other = x > best_ || (x == best_ && index < index_);
      best_ = other ? x : best_;
      index_ = other ? index : index_;
      invalid_ = invalid_ || invalid != 0;
    }
  }

  SUMPROD_DEVICE double value() const { return invalid_ ? not_a_number<double>() : best_; }
  SUMPROD_DEVICE int index() const { return index_; }

 private:
  double best_ = -infinity<double>();
  int index_ = 0;
  bool invalid_ = false;
};

// log sum_i exp(x[i]), known to every lane. Met by whole warps; each of a block's warps gets the same bits.
template <class Real>
SUMPROD_DEVICE double warp_log_sum_exp(const double* x, int states) {
  double top = -infinity<double>();
  for (int i = lane_of_thread(); i < states; i += kWarp) top = x[i] > top ? x[i] : top;
  const double shift = shift_of(warp_max(top));
  double sum = 0.0;
  for (int i = lane_of_thread(); i < states; i += kWarp) sum += exp_of<Real>(x[i] - shift);
  return shift + log(warp_sum(sum));
}

// ---- rows of results ----------------------------------------------------------------------------

// Writes `value` to count elements, by all threads of the block.
template <class T>
SUMPROD_DEVICE void fill_block(T* to, int64_t count, T value) {
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) to[k] = value;
}

}  // namespace sumprod::gpu
