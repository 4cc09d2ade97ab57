#include "ops/hmm_general.h"

#include <algorithm>

#include "ops/hmm_general_passes.h"

namespace sumprod {

namespace {

using gpu::exp_of;
using gpu::fill_block;
using gpu::HmmTeam;
using gpu::infinity;
using gpu::LogSum;
using gpu::not_a_number;
using gpu::shift_of;
using gpu::warp_log_sum_exp;

// Messages kept at a time take about this much memory.
constexpr int64_t kMessageBytes = int64_t(512) << 20;

SUMPROD_DEVICE double* messages_in_use(const HmmMessages& messages, int64_t slot, int64_t doubles) {
  if (messages.work != nullptr) return messages.work + slot * doubles;
  return reinterpret_cast<double*>(gpu::shared_memory());
}

SUMPROD_DEVICE bool is_ours(const HmmGeneral& task, int64_t sequence) {
  return task.only == nullptr || task.only[sequence] != 0;
}

// ---- forward ------------------------------------------------------------------------------------

// d_t[j] = emission[t][j] + log sum_i exp(d_{t-1}[i] + A[i][j]), by the block.
template <class Real>
class ForwardSweep {
 public:
  SUMPROD_DEVICE ForwardSweep(const HmmForwardPass& pass, int64_t slot)
      : pass_(pass),
        p_(pass.task.problem),
        slot_(slot),
        sequence_(pass.chunk.first + slot),
        states_(int(p_.states)),
        length_(gpu::length_on_device(p_, sequence_)),
        team_(p_, sequence_, pass.teams, false),
        message_(messages_in_use(pass.messages, slot, kForwardRows * p_.states)),
        kept_(pass.messages.forward == nullptr ? nullptr : pass.messages.forward + slot * p_.steps * p_.states) {}

  SUMPROD_DEVICE void run() {
    if (length_ > 0) sweep();
    const double z = length_ == 0 ? 0.0 : warp_log_sum_exp<Real>(message(length_ - 1), states_);
    if (pass_.filtered != nullptr) {
      fill_block(filtered_row(length_), (p_.steps - length_) * p_.states, -infinity<Real>());
    }
    if (pass_.dead != nullptr) note_dead(z);
    if (threadIdx.x != 0) return;
    if (pass_.log_normalizer != nullptr) static_cast<Real*>(pass_.log_normalizer)[sequence_] = Real(z);
    if (pass_.messages.log_normalizer != nullptr) pass_.messages.log_normalizer[slot_] = z;
  }

 private:
  SUMPROD_DEVICE double* message(int t) const { return message_ + int64_t(t % 2) * states_; }
  SUMPROD_DEVICE Real* filtered_row(int t) const {
    return static_cast<Real*>(pass_.filtered) + (sequence_ * p_.steps + t) * p_.states;
  }
  SUMPROD_DEVICE Real emission(int t, int state) const {
    if (t >= length_ || state >= states_) return Real(0);
    return __ldg(static_cast<const Real*>(p_.emission) + sequence_ * p_.emission_batch + t * p_.emission_time +
                 state * p_.emission_state);
  }

  SUMPROD_DEVICE void put(int t, int state, double d) {
    message(t)[state] = d;
    if (kept_ != nullptr) kept_[int64_t(t) * states_ + state] = d;
  }

  SUMPROD_DEVICE void sweep() {
    const Real* initial = static_cast<const Real*>(p_.initial) + sequence_ * p_.initial_batch;
    for (int j = threadIdx.x; j < states_; j += blockDim.x) {
      put(0, j, double(initial[j * p_.initial_state]) + double(emission(0, j)));
    }
    if (length_ > 1) team_.start(0);
    Real ahead = emission(1, team_.state(0));
    __syncthreads();
    if (pass_.filtered != nullptr) write_filtered(0);
    for (int t = 1; t < length_; ++t) {
      const Real first = ahead;
      ahead = emission(t + 1, team_.state(0));
      for (int round = 0; round < team_.rounds(); ++round) {
        const int64_t next = t + 1 < length_ ? t : -1;
        const auto sum = team_.template fold<LogSum<Real>>(t - 1, next, round, message(t - 1));
        if (!team_.speaks(round)) continue;
        const int j = team_.state(round);
        put(t, j, double(round == 0 ? first : emission(t, j)) + sum.value());
      }
      __syncthreads();
      if (pass_.filtered != nullptr) write_filtered(t);
    }
  }

  SUMPROD_DEVICE void write_filtered(int t) const {
    const double* d = message(t);
    const double total = shift_of(warp_log_sum_exp<Real>(d, states_));  // -inf rows, not NaN
    Real* row = filtered_row(t);
    for (int j = threadIdx.x; j < states_; j += blockDim.x) row[j] = Real(d[j] - total);
  }

  // Support that is empty stays empty, so that the first such step is found by halving.
  SUMPROD_DEVICE void note_dead(double z) const {
    int dead = -1;
    if (z == -infinity<double>()) {
      int alive = -1;
      dead = length_ - 1;
      while (alive + 1 < dead) {
        const int middle = alive + (dead - alive) / 2;
        bool any = false;
        for (int i = gpu::lane_of_thread(); i < states_; i += gpu::kWarp) {
          any = any || kept_[int64_t(middle) * states_ + i] > -infinity<double>();
        }
        if (__any_sync(gpu::kFullWarp, any)) {
          alive = middle;
        } else {
          dead = middle;
        }
      }
    }
    if (threadIdx.x == 0) pass_.dead[sequence_] = dead;
  }

  const HmmForwardPass& pass_;
  const HmmProblem& p_;
  const int64_t slot_, sequence_;
  const int states_, length_;
  HmmTeam<Real> team_;
  double *message_, *kept_;
};

template <class Real>
__global__ void __launch_bounds__(gpu::kMostTeamThreads) forward_kernel(HmmForwardPass pass) {
  if (!is_ours(pass.task, pass.chunk.first + blockIdx.x)) return;
  ForwardSweep<Real>(pass, blockIdx.x).run();
}

// ---- backward -----------------------------------------------------------------------------------

// b_t[i] = log sum_j exp(A[i][j] + emission[t+1][j] + b_{t+1}[j]), combined with the kept forward messages on the way.
template <class Real>
class BackwardSweep {
 public:
  SUMPROD_DEVICE BackwardSweep(const HmmBackwardPass& pass, int64_t slot)
      : pass_(pass),
        p_(pass.task.problem),
        slot_(slot),
        sequence_(pass.chunk.first + slot),
        states_(int(p_.states)),
        length_(gpu::length_on_device(p_, sequence_)),
        team_(p_, sequence_, pass.teams, true),
        both_(messages_in_use(pass.messages, slot, kBackwardRows * p_.states)),
        next_(both_ + 2 * p_.states),
        forward_(pass.messages.forward + slot * p_.steps * p_.states),
        upstream_(pass.upstream == nullptr ? 1.0 : double(static_cast<const Real*>(pass.upstream)[sequence_])) {}

  SUMPROD_DEVICE void run() {
    const Real none = pass_.upstream == nullptr ? -infinity<Real>() : Real(0);
    if (pass_.rows != nullptr) fill_block(row(length_), (p_.steps - length_) * p_.states, none);
    if (length_ == 0) {
      if (pass_.initial != nullptr) fill_block(initial_row(), p_.states, none);
      return;
    }
    const double z = pass_.messages.log_normalizer[slot_];
    if (z - z == 0.0) return sweep();
    const Real value = z < 0.0 ? none : not_a_number<Real>();
    if (pass_.rows != nullptr) fill_block(row(0), int64_t(length_) * p_.states, value);
    if (pass_.initial != nullptr) fill_block(initial_row(), p_.states, value);
  }

 private:
  SUMPROD_DEVICE Real* row(int t) const {
    return static_cast<Real*>(pass_.rows) + (sequence_ * p_.steps + t) * p_.states;
  }
  SUMPROD_DEVICE Real* initial_row() const { return static_cast<Real*>(pass_.initial) + sequence_ * p_.states; }
  SUMPROD_DEVICE double* both(int t) const { return both_ + int64_t(t % 2) * states_; }
  SUMPROD_DEVICE double* next(int t) const { return next_ + int64_t(t % 2) * states_; }

  // What a step reads of a state besides the messages in use.
  struct Inputs {
    double forward;
    Real emission;
  };
  SUMPROD_DEVICE Inputs inputs(int t, int state) const {
    if (t < 0 || state >= states_) return {0.0, Real(0)};
    return {forward_[int64_t(t) * states_ + state],
            __ldg(static_cast<const Real*>(p_.emission) + sequence_ * p_.emission_batch + t * p_.emission_time +
                  state * p_.emission_state)};
  }

  SUMPROD_DEVICE void put(int t, int state, Inputs in, double b) {
    both(t)[state] = in.forward + b;
    const double w = double(in.emission) + b;
    next(t)[state] = w;
    if (pass_.messages.backward != nullptr) {
      pass_.messages.backward[(slot_ * p_.steps + t) * p_.states + state] = w;
    }
  }

  SUMPROD_DEVICE void sweep() {
    const int last = length_ - 1;
    for (int i = threadIdx.x; i < states_; i += blockDim.x) put(last, i, inputs(last, i), 0.0);
    if (last > 0) team_.start(last - 1);
    Inputs ahead = inputs(last - 1, team_.state(0));
    __syncthreads();
    write_row(last);
    for (int t = last - 1; t >= 0; --t) {
      const Inputs first = ahead;
      ahead = inputs(t - 1, team_.state(0));
      for (int round = 0; round < team_.rounds(); ++round) {
        const auto sum = team_.template fold<LogSum<Real>>(t, t - 1, round, next(t + 1));
        if (!team_.speaks(round)) continue;
        const int i = team_.state(round);
        put(t, i, round == 0 ? first : inputs(t, i), sum.value());
      }
      __syncthreads();
      write_row(t);
    }
  }

  // Normalised by the total that this step sees, so that what either pass has lost to rounding cancels.
  SUMPROD_DEVICE void write_row(int t) const {
    const double total = warp_log_sum_exp<Real>(both(t), states_);
    if (threadIdx.x == 0 && pass_.messages.total != nullptr) pass_.messages.total[slot_ * p_.steps + t] = total;
    if (pass_.rows == nullptr) return;
    for (int i = threadIdx.x; i < states_; i += blockDim.x) {
      const double x = both(t)[i] - total;
      const Real value = pass_.upstream == nullptr ? Real(x) : Real(exp_of<Real>(x) * upstream_);
      row(t)[i] = value;
      if (t == 0 && pass_.initial != nullptr) initial_row()[i] = value;
    }
  }

  const HmmBackwardPass& pass_;
  const HmmProblem& p_;
  const int64_t slot_, sequence_;
  const int states_, length_;
  HmmTeam<Real> team_;
  double *both_, *next_;  // forward plus backward; backward plus emission
  const double* forward_;
  const double upstream_;
};

template <class Real>
__global__ void __launch_bounds__(gpu::kMostTeamThreads) backward_kernel(HmmBackwardPass pass) {
  if (!is_ours(pass.task, pass.chunk.first + blockIdx.x)) return;
  BackwardSweep<Real>(pass, blockIdx.x).run();
}

gpu::LaunchShape shape_of(const HmmMessages& messages, const HmmChunk& chunk, gpu::HmmTeams teams, int64_t doubles) {
  return {chunk.count, teams.threads, messages.work == nullptr ? doubles * int64_t(sizeof(double)) : 0};
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

HmmMessages hmm_messages(const HmmGeneral& task, HmmKeep keep, int rows, const gpu::Stream& stream) {
  const HmmProblem& p = task.problem;
  const int64_t in_use = rows * p.states;
  const bool outside = in_use * int64_t(sizeof(double)) > gpu::properties_of(stream.device).shared_bytes;
  const int64_t all = p.steps * p.states;
  const int64_t forward = keep == HmmKeep::nothing ? 0 : all, backward = keep == HmmKeep::both ? all : 0;
  const int64_t total = keep == HmmKeep::both ? p.steps : 0, one = keep == HmmKeep::nothing ? 0 : 1;
  const int64_t work = outside ? in_use : 0;
  const int64_t each = (forward + backward + total + one + work) * int64_t(sizeof(double));
  HmmMessages m = {};
  m.slots = std::min(p.batch, gpu::kMostBlocks);
  if (each > 0) m.slots = std::min(m.slots, std::max<int64_t>(kMessageBytes / each, 1));
  gpu::SharedArena arena(static_cast<unsigned char*>(task.scratch));
  const auto take = [&](int64_t doubles) { return doubles == 0 ? nullptr : arena.take<double>(m.slots * doubles); };
  m.forward = take(forward);
  m.backward = take(backward);
  m.total = take(total);
  m.log_normalizer = take(one);
  m.work = take(work);
  m.bytes = arena.used();
  return m;
}

void hmm_forward_pass(HmmForwardPass pass, const gpu::Stream& stream) {
  pass.teams = gpu::forward_teams(pass.task.problem.states);
  const auto kernel = pass.task.problem.is_double ? forward_kernel<double> : forward_kernel<float>;
  const int64_t doubles = kForwardRows * pass.task.problem.states;
  gpu::launch(kernel, shape_of(pass.messages, pass.chunk, pass.teams, doubles), stream, pass);
}

void hmm_backward_pass(HmmBackwardPass pass, const gpu::Stream& stream) {
  pass.teams = gpu::backward_teams(pass.task.problem.states);
  const auto kernel = pass.task.problem.is_double ? backward_kernel<double> : backward_kernel<float>;
  const int64_t doubles = kBackwardRows * pass.task.problem.states;
  gpu::launch(kernel, shape_of(pass.messages, pass.chunk, pass.teams, doubles), stream, pass);
}

int64_t hmm_general_log_normalizer_cuda(const HmmGeneral& task, const HmmLogNormalizerOutputs& out,
                                        const gpu::Stream& stream) {
  const HmmMessages messages = hmm_messages(task, HmmKeep::nothing, kForwardRows, stream);
  if (task.scratch == nullptr) return messages.bytes;
  for_each_chunk(task, messages, [&](const HmmChunk& chunk) {
    hmm_forward_pass({task, messages, chunk, {}, out.log_normalizer, nullptr, nullptr}, stream);
  });
  return messages.bytes;
}

int64_t hmm_general_filter_cuda(const HmmGeneral& task, const HmmFilterOutputs& out, const gpu::Stream& stream) {
  const HmmMessages messages = hmm_messages(task, HmmKeep::nothing, kForwardRows, stream);
  if (task.scratch == nullptr) return messages.bytes;
  for_each_chunk(task, messages, [&](const HmmChunk& chunk) {
    hmm_forward_pass({task, messages, chunk, {}, nullptr, out.filtered, nullptr}, stream);
  });
  return messages.bytes;
}

int64_t hmm_general_marginals_cuda(const HmmGeneral& task, const HmmMarginalsOutputs& out, const gpu::Stream& stream) {
  const HmmMessages messages = hmm_messages(task, HmmKeep::forward, kBackwardRows, stream);
  if (task.scratch == nullptr) return messages.bytes;
  for_each_chunk(task, messages, [&](const HmmChunk& chunk) {
    hmm_forward_pass({task, messages, chunk, {}, nullptr, nullptr, nullptr}, stream);
    hmm_backward_pass({task, messages, chunk, {}, out.marginals, nullptr, nullptr}, stream);
  });
  return messages.bytes;
}

}  // namespace sumprod
