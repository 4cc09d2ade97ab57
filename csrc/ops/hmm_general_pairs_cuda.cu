// What the general path makes of pairs of neighbouring states: hmm_pairwise, and gradients of transitions.
//
//   log p(z_t = i, z_t+1 = j | x) = d_t[i] + A_t[i][j] + w_t+1[j] - log Z
// with d the forward messages and w the backward ones, emission included. Both passes have left them, so that all
// pairs of all steps are independent here. Their log Z is the one that step t + 1 has seen.
#include <algorithm>

#include "ops/hmm_general_passes.h"

namespace sumprod {

namespace {

using gpu::exp_of;
using gpu::infinity;
using gpu::not_a_number;

constexpr int kThreads = 256;
constexpr int64_t kMostGrid = int64_t(1) << 20;

struct PairPass {
  HmmGeneral task;
  HmmMessages messages;
  HmmChunk chunk;
  const void* upstream;  // [batch], or null: logs are wanted
  void* out;
  TransitionGradient kind;
  int lanes;        // threads that share a step's pairs: a power of two
  int64_t units;    // for TransitionGradient::shared
  bool accumulate;  // add to what earlier chunks have left
};

// One sequence of the chunk, as far as pairs are concerned.
template <class Real>
class PairSequence {
 public:
  SUMPROD_DEVICE PairSequence(const PairPass& pass, int64_t slot)
      : p_(pass.task.problem),
        sequence_(pass.chunk.first + slot),
        forward_(pass.messages.forward + slot * p_.steps * p_.states),
        backward_(pass.messages.backward + slot * p_.steps * p_.states),
        total_(pass.messages.total + slot * p_.steps),
        matrix_(static_cast<const Real*>(p_.transition) + sequence_ * p_.transition_batch),
        log_normalizer_(pass.messages.log_normalizer[slot]),
        pairs_(gpu::length_on_device(p_, sequence_) - 1),
        upstream_(pass.upstream == nullptr ? 1.0 : double(static_cast<const Real*>(pass.upstream)[sequence_])) {}

  SUMPROD_DEVICE int64_t sequence() const { return sequence_; }
  SUMPROD_DEVICE int pairs() const { return pairs_; }
  SUMPROD_DEVICE bool possible() const { return log_normalizer_ - log_normalizer_ == 0.0; }
  SUMPROD_DEVICE bool invalid() const { return !possible() && !(log_normalizer_ < 0.0); }

  SUMPROD_DEVICE double entry(int64_t t, int i, int j) const {
    return double(__ldg(matrix_ + t * p_.transition_time + i * p_.transition_from + j * p_.transition_to));
  }
  // Only for possible sequences.
  SUMPROD_DEVICE double log_probability(int64_t t, int i, int j, double entry) const {
    return ((forward_[t * p_.states + i] + entry) + backward_[(t + 1) * p_.states + j]) - total_[t + 1];
  }
  SUMPROD_DEVICE double gradient(int64_t t, int i, int j, double entry) const {
    if (possible()) return exp_of<Real>(log_probability(t, i, j, entry)) * upstream_;
    return invalid() ? not_a_number<double>() : 0.0;
  }

 private:
  const HmmProblem& p_;
  const int64_t sequence_;
  const double *forward_, *backward_, *total_;
  const Real* matrix_;
  const double log_normalizer_;
  const int pairs_;
  const double upstream_;
};

// For rows [0, rows) that are wanted(row), calls visit(row)(entry) for all entries, so that visit(row) can read once
// what a row has in common: `lanes` neighbouring threads share a row.
template <class Wanted, class Visit>
SUMPROD_DEVICE void for_each_entry(int64_t rows, int64_t entries, int lanes, Wanted wanted, Visit visit) {
  const int per_block = kThreads / lanes;
  for (int64_t row = int64_t(blockIdx.x) * per_block + int(threadIdx.x) / lanes; row < rows;
       row += int64_t(gridDim.x) * per_block) {
    if (!wanted(row)) continue;
    const auto visit_entry = visit(row);
    for (int64_t k = int(threadIdx.x) % lanes; k < entries; k += lanes) visit_entry(k);
  }
}

struct AllRows {
  SUMPROD_DEVICE bool operator()(int64_t) const { return true; }
};

// A result for every pair of every step: hmm_pairwise, and TransitionGradient::own_steps.
template <class Real>
__global__ void __launch_bounds__(kThreads) each_pair_kernel(PairPass pass) {
  const HmmProblem& p = pass.task.problem;
  const int64_t steps = p.steps - 1, states = p.states, square = states * states;
  const Real none = pass.upstream == nullptr ? -infinity<Real>() : Real(0);
  const auto ours = [&](int64_t row) {
    return pass.task.only == nullptr || pass.task.only[pass.chunk.first + row / steps] != 0;
  };
  for_each_entry(pass.chunk.count * steps, square, pass.lanes, ours, [&](int64_t row) {
    const int64_t slot = row / steps, t = row % steps;
    const PairSequence<Real> s(pass, slot);
    return [=, &pass](int64_t k) {
      const int i = int(k / states), j = int(k % states);
      Real value = none;
      if (t < s.pairs()) {
        if (pass.upstream != nullptr) {
          value = Real(s.gradient(t, i, j, s.entry(t, i, j)));
        } else if (s.possible()) {
          value = Real(s.log_probability(t, i, j, s.entry(t, i, j)));
        } else if (s.invalid()) {
          value = not_a_number<Real>();
        }
      }
      static_cast<Real*>(pass.out)[(s.sequence() * steps + t) * square + k] = value;
    };
  });
}

// Sums over steps: for TransitionGradient::own one result per sequence, for ::shared one per unit, which takes an
// equal part of all steps of the chunk.
template <class Real>
__global__ void __launch_bounds__(kThreads) sum_over_time_kernel(PairPass pass) {
  const HmmProblem& p = pass.task.problem;
  const int64_t steps = p.steps - 1, states = p.states, square = states * states;
  const bool own = pass.kind == TransitionGradient::own;
  const int64_t units = own ? pass.chunk.count : pass.units, total = pass.chunk.count * steps;
  const int64_t part = own ? steps : (total + units - 1) / units;
  for_each_entry(units, square, pass.lanes, AllRows(), [&](int64_t unit) {
    return [=, &pass, &p](int64_t k) {
      const int64_t begin = unit * part, end = begin + part < total ? begin + part : total;
      const int i = int(k / states), j = int(k % states);
      double sum = 0.0;
      for (int64_t at = begin; at < end;) {
        const int64_t slot = at / steps, first = slot * steps;
        const int64_t stop = end < first + steps ? end : first + steps;
        if (pass.task.only == nullptr || pass.task.only[pass.chunk.first + slot] != 0) {
          const PairSequence<Real> s(pass, slot);
          const int64_t last = stop - first < s.pairs() ? stop - first : s.pairs();
          const double entry = s.pairs() > 0 ? s.entry(0, i, j) : 0.0;
          for (int64_t t = at - first; t < last; ++t) sum += s.gradient(t, i, j, entry);
        }
        at = stop;
      }
      if (own) {
        const int64_t sequence = pass.chunk.first + unit;
        if (pass.task.only == nullptr || pass.task.only[sequence] != 0) {
          static_cast<Real*>(pass.out)[sequence * square + k] = Real(sum);
        }
      } else {
        double* out = static_cast<double*>(pass.out) + unit * square + k;
        *out = pass.accumulate ? *out + sum : sum;
      }
    };
  });
}

// TransitionGradient::shared_steps: sums over the sequences of the chunk, in their order.
template <class Real>
__global__ void __launch_bounds__(kThreads) sum_over_batch_kernel(PairPass pass) {
  const HmmProblem& p = pass.task.problem;
  const int64_t steps = p.steps - 1, states = p.states, square = states * states;
  for_each_entry(steps, square, pass.lanes, AllRows(), [&](int64_t t) {
    return [=, &pass, &p](int64_t k) {
      const int i = int(k / states), j = int(k % states);
      double* out = static_cast<double*>(pass.out) + t * square + k;
      double sum = pass.accumulate ? *out : 0.0;
      for (int64_t slot = 0; slot < pass.chunk.count; ++slot) {
        if (pass.task.only != nullptr && pass.task.only[pass.chunk.first + slot] == 0) continue;
        const PairSequence<Real> s(pass, slot);
        if (t < s.pairs()) sum += s.gradient(t, i, j, s.entry(t, i, j));
      }
      *out = sum;
    };
  });
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(const double* partial, int64_t rows, int64_t size, Real* out) {
  for (int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x; k < size; k += int64_t(gridDim.x) * kThreads) {
    double sum = 0.0;
    for (int64_t r = 0; r < rows; ++r) sum += partial[r * size + k];
    out[k] = Real(sum);
  }
}

// A block has 32 states; its warps take turns with the sequences.
constexpr int kBatchWarps = 16;
template <class Real>
__global__ void __launch_bounds__(kBatchWarps* gpu::kWarp)
    add_batch_kernel(const Real* rows, int64_t batch, int64_t states, Real* out) {
  double* part = reinterpret_cast<double*>(gpu::shared_memory());  // [warp][lane]
  const int lane = gpu::lane_of_thread(), warp = gpu::warp_of_thread();
  const int64_t state = int64_t(blockIdx.x) * gpu::kWarp + lane;
  double sum = 0.0;
  if (state < states) {
    for (int64_t b = warp; b < batch; b += kBatchWarps) sum += double(rows[b * states + state]);
  }
  part[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || state >= states) return;
  for (int w = 1; w < kBatchWarps; ++w) sum += part[w * gpu::kWarp + lane];
  out[state] = Real(sum);
}

int64_t blocks_for(int64_t threads, int64_t most = kMostGrid) {
  return std::clamp<int64_t>((threads + kThreads - 1) / kThreads, 1, most);
}

void launch_pairs(PairPass pass, const gpu::Stream& stream) {
  const HmmProblem& p = pass.task.problem;
  const int64_t square = p.states * p.states;
  pass.lanes = 1;
  while (pass.lanes < kThreads && pass.lanes < square) pass.lanes *= 2;
  int64_t rows = pass.chunk.count * (p.steps - 1);
  auto kernel = p.is_double ? each_pair_kernel<double> : each_pair_kernel<float>;
  if (pass.kind == TransitionGradient::own || pass.kind == TransitionGradient::shared) {
    rows = pass.kind == TransitionGradient::own ? pass.chunk.count : pass.units;
    kernel = p.is_double ? sum_over_time_kernel<double> : sum_over_time_kernel<float>;
  } else if (pass.kind == TransitionGradient::shared_steps) {
    rows = p.steps - 1;
    kernel = p.is_double ? sum_over_batch_kernel<double> : sum_over_batch_kernel<float>;
  }
  // Few sequences are left by the fast kernels, most often none: then there should be few blocks to find that out.
  const int64_t most = pass.task.only == nullptr ? kMostGrid : 8 * gpu::properties_of(stream.device).multiprocessors;
  gpu::launch(kernel, {blocks_for(rows * pass.lanes, most), kThreads}, stream, pass);
}

}  // namespace

int64_t hmm_general_pairwise_cuda(const HmmGeneral& task, const HmmPairwiseOutputs& out, const gpu::Stream& stream) {
  const HmmMessages messages = hmm_messages(task, HmmKeep::both, kBackwardRows, stream);
  if (task.scratch == nullptr || task.problem.steps < 2) return messages.bytes;
  for_each_chunk(task, messages, [&](const HmmChunk& chunk) {
    hmm_forward_pass({task, messages, chunk, {}, nullptr, nullptr, nullptr}, stream);
    hmm_backward_pass({task, messages, chunk, {}, nullptr, nullptr, nullptr}, stream);
    launch_pairs({task, messages, chunk, nullptr, out.pairwise, TransitionGradient::own_steps, 0, 0, false}, stream);
  });
  return messages.bytes;
}

int64_t hmm_general_gradient_units(const HmmProblem& problem) {
  // Estimated; to be measured on a GPU. About 256 steps each, as many as keep a GPU busy, in modest memory.
  constexpr int64_t kBytes = int64_t(64) << 20, kMostUnits = 1024, kSteps = 256;
  const int64_t square = problem.states * problem.states * static_cast<int64_t>(sizeof(double));
  return std::clamp<int64_t>(std::min(kBytes / square, problem.batch * problem.steps / kSteps), 1, kMostUnits);
}

int64_t hmm_general_gradient_cuda(const HmmGeneral& task, const HmmLogNormalizerGradients& out,
                                  const gpu::Stream& stream) {
  const HmmProblem& p = task.problem;
  const bool pairs = p.steps > 1;
  const HmmMessages messages = hmm_messages(task, pairs ? HmmKeep::both : HmmKeep::forward, kBackwardRows, stream);
  if (task.scratch == nullptr) return messages.bytes;
  const int64_t units = hmm_general_gradient_units(p);
  for_each_chunk(task, messages, [&](const HmmChunk& chunk) {
    hmm_forward_pass({task, messages, chunk, {}, nullptr, nullptr, nullptr}, stream);
    hmm_backward_pass({task, messages, chunk, {}, out.emission, out.upstream, out.initial}, stream);
    if (!pairs) return;
    launch_pairs({task, messages, chunk, out.upstream, out.transition, out.kind, 0, units, chunk.first > 0}, stream);
  });
  return messages.bytes;
}

void hmm_add_partial_sums_cuda(const double* partial, int64_t rows, int64_t size, void* out, bool is_double,
                               const gpu::Stream& stream) {
  const gpu::LaunchShape shape = {blocks_for(size), kThreads};
  if (is_double) return gpu::launch(add_rows_kernel<double>, shape, stream, partial, rows, size, out);
  gpu::launch(add_rows_kernel<float>, shape, stream, partial, rows, size, out);
}

void hmm_add_batch_cuda(const void* rows, int64_t batch, int64_t states, void* out, bool is_double,
                        const gpu::Stream& stream) {
  constexpr int kThreadsPerBlock = kBatchWarps * gpu::kWarp;
  const gpu::LaunchShape shape = {(states + gpu::kWarp - 1) / gpu::kWarp, kThreadsPerBlock,
                                  kThreadsPerBlock * int64_t(sizeof(double))};
  if (is_double) return gpu::launch(add_batch_kernel<double>, shape, stream, rows, batch, states, out);
  gpu::launch(add_batch_kernel<float>, shape, stream, rows, batch, states, out);
}

}  // namespace sumprod
