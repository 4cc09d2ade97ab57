#include "gpu/hmm_rows.h"

#include "gpu/hmm_arithmetic.cuh"
#include "gpu/hmm_length.cuh"

namespace sumprod::gpu {

namespace {

constexpr int kThreads = 128;
constexpr int64_t kBlocksPerMultiprocessor = 16;

// One step of one sequence, held by `width` neighbouring lanes: lane l has the states l, l + width, ...
template <class Real>
class Row {
 public:
  // `sequence` may be past the last one: such a row does not exist.
  SUMPROD_DEVICE Row(const HmmRows& rows, int64_t sequence, int64_t t, int width)
      : rows_(rows), p_(rows.problem), width_(width), lane_(int(threadIdx.x) % width) {
    exists_ = sequence < p_.batch;
    sequence_ = exists_ ? sequence : 0;
    t_ = t;
    row_ = sequence_ * p_.steps + t_;
    length_ = length_on_device(p_, sequence_);
    inside_ = exists_ && t_ < length_;
    emission_ = static_cast<const Real*>(p_.emission) + sequence_ * p_.emission_batch + t_ * p_.emission_time;
    initial_ = t_ == 0 ? static_cast<const Real*>(p_.initial) + sequence_ * p_.initial_batch : nullptr;
    wanted_ = inside_ && !flag_raised(rows.redo + sequence_);
    double top = -infinity<double>();
    each_state([&](int64_t s) {
      const double x = potential(s);
      top = x > top ? x : top;
    });
    top = warp_max(top, width);
    top_ = top == -infinity<double>() ? 0.0 : top;
  }

  SUMPROD_DEVICE int64_t sequence() const { return sequence_; }
  SUMPROD_DEVICE int64_t time() const { return t_; }
  SUMPROD_DEVICE bool wanted() const { return wanted_; }
  SUMPROD_DEVICE bool padding() const { return exists_ && !inside_; }
  SUMPROD_DEVICE int64_t at(int64_t s) const { return row_ * p_.states + s; }

  // The emission (and at the first step the initial potential) relative to the largest of the step.
  SUMPROD_DEVICE Real below(int64_t s) const { return Real(potential(s) - top_); }
  SUMPROD_DEVICE Real forward(int64_t s) const { return static_cast<const Real*>(rows_.forward)[at(s)]; }
  SUMPROD_DEVICE Real backward(int64_t s) const { return static_cast<const Real*>(rows_.backward)[at(s)]; }

  // Calls f(s) for the states of this lane, where the step is inside its sequence and wanted.
  template <class F>
  SUMPROD_DEVICE void each_state(F f) const {
    if (!wanted_) return;
    for (int64_t s = lane_; s < p_.states; s += width_) f(s);
  }

  // Sum over states of the forward message with its emission (times the backward message). For all lanes at once.
  SUMPROD_DEVICE double total(bool with_backward) const {
    double sum = 0.0;
    each_state([&](int64_t s) {
      const double x = double(forward(s)) * double(exp(below(s)));
      sum += with_backward ? x * double(backward(s)) : x;
    });
    return warp_sum(sum, width_);
  }

  // Whether total(true) is too small to be trusted, which is noted.
  SUMPROD_DEVICE bool distrusted(double total) {
    constexpr double kLeast = sizeof(Real) == 4 ? 0x1p-60 : 0x1p-300;
    if (!wanted_ || t_ + 1 == length_ || total >= kLeast) return false;
    raise_flag(rows_.redo + sequence_);
    return true;
  }

  // Past the length of the sequence.
  SUMPROD_DEVICE void fill(Real* out, int64_t first, Real value) const {
    if (!padding()) return;
    for (int64_t s = lane_; s < p_.states; s += width_) out[first + s] = value;
  }

 private:
  SUMPROD_DEVICE double potential(int64_t s) const {
    const double x = double(emission_[s * p_.emission_state]);
    return initial_ == nullptr ? x : x + double(initial_[s * p_.initial_state]);
  }

  const HmmRows& rows_;
  const HmmProblem& p_;
  const int width_, lane_;
  int64_t row_, sequence_, t_, length_;
  bool exists_, inside_, wanted_;
  const Real *emission_, *initial_;
  double top_ = 0.0;
};

int width_of(int64_t states) { return states <= 8 ? 8 : (states <= 16 ? 16 : 32); }

int64_t blocks_for(int64_t rows, int rows_per_block, const Stream& stream) {
  const int64_t most = kBlocksPerMultiprocessor * properties_of(stream.device).multiprocessors;
  const int64_t wanted = (rows + rows_per_block - 1) / rows_per_block;
  return wanted < most ? wanted : most;
}

// Calls use(sequence, t) for all steps [0, steps) of all sequences, and once more past the last sequence where the
// lanes of a warp must stay together; neighbouring groups of `width` lanes have neighbouring steps.
template <class Use>
SUMPROD_DEVICE void for_each_step(int64_t batch, int64_t steps, int width, Use use) {
  const int64_t together = kThreads / width, stride = int64_t(gridDim.x) * together;
  const int64_t first = int64_t(blockIdx.x) * together, own = first + int(threadIdx.x) / width;
  // Divisions are slow, so there is but one.
  const int64_t sequences = stride / steps, rest = stride % steps;
  int64_t sequence = own / steps, t = own % steps;
  for (int64_t base = first; base < batch * steps; base += stride) {
    use(sequence, t);
    sequence += sequences;
    t += rest;
    if (t >= steps) {
      t -= steps;
      ++sequence;
    }
  }
}

template <class Real, class Use>
SUMPROD_DEVICE void for_each_row(const HmmRows& rows, int width, Use use) {
  for_each_step(rows.problem.batch, rows.problem.steps, width, [&](int64_t sequence, int64_t t) {
    Row<Real> row(rows, sequence, t, width);
    use(row);
  });
}

// log(x * y / total). The quotient first, so that what is certain has log 0; of tiny numbers the logs.
template <class Real>
SUMPROD_DEVICE Real log_share(Real x, Real y, double total) {
  constexpr double kTiny = sizeof(Real) == 4 ? 0x1p-100 : 0x1p-900;
  const double share = double(x) * double(y) / total;
  return share > kTiny ? log(Real(share)) : Real(log(double(x)) + log(double(y)) - log(total));
}

template <class Real>
__global__ void __launch_bounds__(kThreads) filter_kernel(HmmRows rows, int width, Real* filtered) {
  for_each_row<Real>(rows, width, [&](Row<Real>& row) {
    const double total = row.total(false);
    // Through the predicted message: exp(emission) may have underflowed, its log has not.
    row.each_state([&](int64_t s) { filtered[row.at(s)] = log_share(row.forward(s), Real(1), total) + row.below(s); });
    row.fill(filtered, row.at(0), -infinity<Real>());
  });
}

template <class Real>
__global__ void __launch_bounds__(kThreads) marginal_kernel(HmmRows rows, int width, Real* marginals) {
  for_each_row<Real>(rows, width, [&](Row<Real>& row) {
    const double total = row.total(true);
    row.fill(marginals, row.at(0), -infinity<Real>());
    if (row.distrusted(total)) return;
    row.each_state(
        [&](int64_t s) { marginals[row.at(s)] = log_share(row.forward(s), row.backward(s), total) + row.below(s); });
  });
}

template <class Real>
__global__ void __launch_bounds__(kThreads) gradient_kernel(HmmRows rows, int width, HmmGradientRows gradient) {
  Real* emission = static_cast<Real*>(gradient.emission);
  Real* initial = static_cast<Real*>(gradient.initial);
  for_each_row<Real>(rows, width, [&](Row<Real>& row) {
    const double total = row.total(true);
    row.fill(emission, row.at(0), Real(0));
    if (row.time() == 0) row.fill(initial, row.sequence() * rows.problem.states, Real(0));  // no steps at all
    if (row.distrusted(total)) return;
    const double upstream = double(static_cast<const Real*>(gradient.upstream)[row.sequence()]);
    const int64_t states = rows.problem.states;
    const bool first = row.time() == 0;
    // The pair of this step and the one before: its total is that of this step without the forward scale.
    double pair = 0.0;
    if (gradient.keeps_pairs && row.wanted()) {
      const int32_t exponent = rows.exponents[row.at(0) / states];
      pair = upstream * power_of_two(exponent, double()) / total;
    }
    row.each_state([&](int64_t s) {
      const Real factor = exp(row.below(s)), a = row.forward(s) * factor, b = row.backward(s);
      const Real x = Real(upstream * (double(a) * double(b) / total));
      emission[row.at(s)] = x;
      if (first) initial[row.sequence() * states + s] = x;
      if (!gradient.keeps_pairs) return;
      static_cast<Real*>(rows.forward)[row.at(s)] = a;
      const Real to = Real(double(factor) * double(b) * pair);
      static_cast<Real*>(rows.backward)[row.at(s)] = to;
      if (!(to - to == Real(0))) raise_flag(rows.redo + row.sequence());
    });
  });
}

// One warp per pair of steps.
template <class Real>
__global__ void __launch_bounds__(kThreads) pairwise_kernel(HmmRows rows, const double* shift, Real* pairwise) {
  const HmmProblem& p = rows.problem;
  const int states = int(p.states), warps = kThreads / kWarp;
  SharedArena arena(shared_memory());
  Real* from = arena.take<Real>(int64_t(warps) * states) + int64_t(warp_of_thread()) * states;
  Real* to = arena.take<Real>(int64_t(warps) * states) + int64_t(warp_of_thread()) * states;
  const int64_t pairs = p.steps - 1;
  const Real* potentials = static_cast<const Real*>(p.transition);
  for_each_step(p.batch, pairs, kWarp, [&](int64_t sequence, int64_t t) {
    Row<Real> here(rows, sequence, t, kWarp), next(rows, sequence, t + 1, kWarp);
    const double total = next.total(true);
    const bool lost = next.distrusted(total);
    const bool wanted = next.wanted() && !lost;
    if (wanted) {
      here.each_state([&](int64_t s) { from[s] = log(here.forward(s)) + here.below(s); });
      next.each_state([&](int64_t s) { to[s] = log(next.backward(s)) + next.below(s); });
    }
    __syncwarp();
    Real* out = pairwise + (sequence * pairs + t) * states * states;
    if (wanted) {
      const double top = shift[p.transition_batch == 0 ? 0 : sequence];
      const double norm = log(total) - double(rows.exponents[sequence * p.steps + t + 1]) * kLn2 + top;
      const Real* potential = potentials + sequence * p.transition_batch;
      for (int k = lane_of_thread(); k < states * states; k += kWarp) {
        const int i = k / states, j = k % states;
        const Real weight = potential[i * p.transition_from + j * p.transition_to];
        out[k] = (from[i] + to[j]) + Real(double(weight) - norm);
      }
    } else if (next.padding()) {
      for (int k = lane_of_thread(); k < states * states; k += kWarp) out[k] = -infinity<Real>();
    }
    __syncwarp();
  });
}

template <class Real>
__global__ void __launch_bounds__(1024) shift_kernel(HmmProblem problem, double* shift) {
  double* tops = reinterpret_cast<double*>(shared_memory());
  const Real* potential = static_cast<const Real*>(problem.transition) + blockIdx.x * problem.transition_batch;
  double top = -infinity<double>();
  for (int64_t k = threadIdx.x; k < problem.states * problem.states; k += blockDim.x) {
    const int64_t i = k / problem.states, j = k % problem.states;
    const double x = double(potential[i * problem.transition_from + j * problem.transition_to]);
    if (x < infinity<double>() && x > top) top = x;
  }
  top = warp_max(top);
  if (lane_of_thread() == 0) tops[warp_of_thread()] = top;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < int(blockDim.x) / kWarp; ++w) top = tops[w] > top ? tops[w] : top;
  shift[blockIdx.x] = top == -infinity<double>() ? 0.0 : top;
}

template <class Real, class F>
void with_rows(const HmmRows& rows, const Stream& stream, F launch_kernel) {
  const int width = width_of(rows.problem.states);
  const int64_t count = rows.problem.batch * rows.problem.steps;
  launch_kernel(LaunchShape{blocks_for(count, kThreads / width, stream), kThreads}, width);
}

template <class F>
void for_real(const HmmProblem& problem, F f) {
  if (problem.is_double) return f(double());
  f(float());
}

}  // namespace

void filter_rows(const HmmRows& rows, void* filtered, const Stream& stream) {
  for_real(rows.problem, [&](auto real) {
    using Real = decltype(real);
    with_rows<Real>(rows, stream, [&](const LaunchShape& shape, int width) {
      launch(filter_kernel<Real>, shape, stream, rows, width, static_cast<Real*>(filtered));
    });
  });
}

void marginal_rows(const HmmRows& rows, void* marginals, const Stream& stream) {
  for_real(rows.problem, [&](auto real) {
    using Real = decltype(real);
    with_rows<Real>(rows, stream, [&](const LaunchShape& shape, int width) {
      launch(marginal_kernel<Real>, shape, stream, rows, width, static_cast<Real*>(marginals));
    });
  });
}

void gradient_rows(const HmmRows& rows, const HmmGradientRows& gradient, const Stream& stream) {
  for_real(rows.problem, [&](auto real) {
    using Real = decltype(real);
    with_rows<Real>(rows, stream, [&](const LaunchShape& shape, int width) {
      launch(gradient_kernel<Real>, shape, stream, rows, width, gradient);
    });
  });
}

void pairwise_rows(const HmmRows& rows, const double* shift, void* pairwise, const Stream& stream) {
  const int64_t count = rows.problem.batch * (rows.problem.steps - 1);
  for_real(rows.problem, [&](auto real) {
    using Real = decltype(real);
    constexpr int kWarps = kThreads / kWarp;
    SharedArena arena(nullptr);
    arena.take<Real>(kWarps * rows.problem.states);
    arena.take<Real>(kWarps * rows.problem.states);
    const LaunchShape shape{blocks_for(count, kWarps, stream), kThreads, arena.used()};
    launch(pairwise_kernel<Real>, shape, stream, rows, shift, static_cast<Real*>(pairwise));
  });
}

int64_t shift_count(const HmmProblem& problem) { return problem.transition_batch == 0 ? 1 : problem.batch; }

void transition_shift(const HmmProblem& problem, double* shift, const Stream& stream) {
  const int threads = problem.states <= 8 ? 64 : 1024;
  const LaunchShape shape{shift_count(problem), threads, int64_t(sizeof(double)) * threads / kWarp};
  for_real(problem, [&](auto real) { launch(shift_kernel<decltype(real)>, shape, stream, problem, shift); });
}

}  // namespace sumprod::gpu
