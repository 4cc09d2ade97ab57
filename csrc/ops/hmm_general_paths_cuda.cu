// State paths by the general path: Viterbi, and backward sampling.
#include <algorithm>

#include "ops/hmm_general_passes.h"

namespace sumprod {

namespace {

using gpu::Best;
using gpu::exp_of;
using gpu::fill_block;
using gpu::HmmTeam;
using gpu::infinity;
using gpu::not_a_number;

// ---- Viterbi ------------------------------------------------------------------------------------

// d_t[j] = emission[t][j] + max_i (d_{t-1}[i] + A[i][j]), absolute and in double, so that ties between sums that
// round alike do not exist but for those of the potentials themselves. The lowest best i is noted for each j.

constexpr int64_t kPointerBytes = int64_t(512) << 20;  // kept at a time, about
constexpr int kTraceBytes = 16 * 1024;                 // back-pointers in shared memory at a time
constexpr int kTraceSteps = 1024;

struct ViterbiPass {
  HmmGeneral task;
  HmmViterbiOutputs out;
  HmmChunk chunk;
  gpu::HmmTeams teams;
  unsigned char* pointers;  // [slot][steps][states] of `width` bytes each, a slot's part in whole int4
  int64_t slot_bytes;
  int width;
  int trace_rows;  // steps whose pointers fit into shared memory; 0: they are read where they are
  double* work;    // [slot][2][states], or null: messages in shared memory
};

struct ViterbiShared {
  double* message;
  int* path;       // [kTraceSteps]
  int4* pointers;  // kTraceBytes and one int4 more, because rows may start anywhere in one
  int64_t bytes;
  SUMPROD_BOTH ViterbiShared(unsigned char* base, const ViterbiPass& pass) {
    gpu::SharedArena arena(base);
    message = arena.take<double>(pass.work == nullptr ? 2 * pass.task.problem.states : 0);
    path = arena.take<int>(kTraceSteps);
    pointers = arena.take<int4>(pass.trace_rows == 0 ? 0 : kTraceBytes / 16 + 2);
    bytes = arena.used();
  }
};

SUMPROD_DEVICE int read_pointer(const unsigned char* row, int state, int width) {
  if (width == 1) return row[state];
  if (width == 2) return reinterpret_cast<const uint16_t*>(row)[state];
  return reinterpret_cast<const int*>(row)[state];
}
SUMPROD_DEVICE void write_pointer(unsigned char* row, int state, int width, int value) {
  if (width == 1) {
    row[state] = static_cast<unsigned char>(value);
  } else if (width == 2) {
    reinterpret_cast<uint16_t*>(row)[state] = static_cast<uint16_t>(value);
  } else {
    reinterpret_cast<int*>(row)[state] = value;
  }
}

template <class Real>
class ViterbiSweep {
 public:
  SUMPROD_DEVICE ViterbiSweep(const ViterbiPass& pass, int64_t slot)
      : pass_(pass),
        p_(pass.task.problem),
        sequence_(pass.chunk.first + slot),
        states_(int(p_.states)),
        length_(gpu::length_on_device(p_, sequence_)),
        team_(p_, sequence_, pass.teams, false),
        shared_(gpu::shared_memory(), pass),
        message_(pass.work == nullptr ? shared_.message : pass.work + slot * 2 * p_.states),
        pointers_(pass.pointers + slot * pass.slot_bytes),
        row_bytes_(p_.states * pass.width),
        path_(pass.out.path + sequence_ * p_.steps) {}

  SUMPROD_DEVICE void run() {
    fill_block<int64_t>(path_ + length_, p_.steps - length_, -1);
    if (length_ == 0) return finish(0.0, -1);
    const int dead = sweep();
    bool invalid = false;
    const Best best = best_last(invalid);
    if (invalid || dead >= 0) {
      fill_block<int64_t>(path_, length_, -1);
      return finish(invalid ? not_a_number<double>() : -infinity<double>(), invalid ? -1 : dead);
    }
    finish(best.value(), -1);
    trace(best.index());
  }

 private:
  SUMPROD_DEVICE double* message(int t) const { return message_ + int64_t(t % 2) * states_; }
  SUMPROD_DEVICE unsigned char* pointer_row(int t) const { return pointers_ + t * row_bytes_; }
  SUMPROD_DEVICE Real emission(int t, int state) const {
    if (t >= length_ || state >= states_) return Real(0);
    return __ldg(static_cast<const Real*>(p_.emission) + sequence_ * p_.emission_batch + t * p_.emission_time +
                 state * p_.emission_state);
  }

  // +inf becomes NaN, which every later message shares.
  SUMPROD_DEVICE double put(int t, int state, double before, Real emission) {
    double d = before + double(emission);
    if (!(d < infinity<double>())) d = not_a_number<double>();
    message(t)[state] = d;
    return d;
  }

  // Returns the first step at which no state is possible, or -1.
  SUMPROD_DEVICE int sweep() {
    const Real* initial = static_cast<const Real*>(p_.initial) + sequence_ * p_.initial_batch;
    bool alive = false;
    for (int j = threadIdx.x; j < states_; j += blockDim.x) {
      const double d = put(0, j, double(initial[j * p_.initial_state]), emission(0, j));
      alive = alive || d != -infinity<double>();
    }
    if (length_ > 1) team_.start(0);
    Real ahead = emission(1, team_.state(0));
    int dead = __syncthreads_or(alive) != 0 ? -1 : 0;
    for (int t = 1; t < length_; ++t) {
      const Real first = ahead;
      ahead = emission(t + 1, team_.state(0));
      alive = false;
      for (int round = 0; round < team_.rounds(); ++round) {
        const Best best = team_.template fold<Best>(t - 1, t + 1 < length_ ? t : -1, round, message(t - 1));
        if (!team_.speaks(round)) continue;
        const int j = team_.state(round);
        const double d = put(t, j, best.value(), round == 0 ? first : emission(t, j));
        alive = alive || d != -infinity<double>();
        write_pointer(pointer_row(t), j, pass_.width, best.index());
      }
      if (__syncthreads_or(alive) == 0 && dead < 0) dead = t;
    }
    return dead;
  }

  // The last state of the best path, known to every thread.
  SUMPROD_DEVICE Best best_last(bool& invalid) const {
    Best best;
    const double* d = message(length_ - 1);
    for (int i = gpu::lane_of_thread(); i < states_; i += gpu::kWarp) best.add(d[i], i);
    best.combine(gpu::kWarp);
    invalid = best.value() != best.value();
    return best;
  }

  SUMPROD_DEVICE void finish(double score, int dead) const {
    if (threadIdx.x != 0) return;
    static_cast<Real*>(pass_.out.score)[sequence_] = Real(score);
    pass_.out.dead[sequence_] = dead;
  }

  // From the last state back: one thread follows the pointers, which the block brings into shared memory and whose
  // path it takes out.
  SUMPROD_DEVICE void trace(int state) const {
    if (threadIdx.x == 0) path_[length_ - 1] = state;
    const int rows = pass_.trace_rows == 0 ? kTraceSteps : pass_.trace_rows;
    for (int end = length_ - 1; end > 0;) {
      const int begin = end > rows ? end - rows : 0;  // pointers of steps begin + 1 .. end, states begin .. end - 1
      const unsigned char* first = pass_.trace_rows == 0 ? pointer_row(begin + 1) : bring(begin + 1, end + 1);
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int t = end; t > begin; --t) {
          state = read_pointer(first + (t - begin - 1) * row_bytes_, state, pass_.width);
          shared_.path[t - 1 - begin] = state;
        }
      }
      __syncthreads();
      for (int k = threadIdx.x; k < end - begin; k += blockDim.x) path_[begin + k] = shared_.path[k];
      end = begin;
    }
  }

  // Copies rows [begin, end) of pointers, with what shares their first and last 16 bytes; returns where they start.
  SUMPROD_DEVICE const unsigned char* bring(int begin, int end) const {
    const int64_t first = begin * row_bytes_, offset = first % 16;
    const int count = int((end * row_bytes_ - (first - offset) + 15) / 16);
    const int4* from = reinterpret_cast<const int4*>(pointers_ + (first - offset));
    for (int k = threadIdx.x; k < count; k += blockDim.x) shared_.pointers[k] = from[k];
    return reinterpret_cast<const unsigned char*>(shared_.pointers) + offset;
  }

  const ViterbiPass& pass_;
  const HmmProblem& p_;
  const int64_t sequence_;
  const int states_, length_;
  HmmTeam<Real> team_;
  const ViterbiShared shared_;
  double* message_;
  unsigned char* pointers_;
  const int64_t row_bytes_;
  int64_t* path_;
};

template <class Real>
__global__ void __launch_bounds__(gpu::kMostTeamThreads) viterbi_kernel(ViterbiPass pass) {
  if (pass.task.only != nullptr && pass.task.only[pass.chunk.first + blockIdx.x] == 0) return;
  ViterbiSweep<Real>(pass, blockIdx.x).run();
}

// ---- sampling -----------------------------------------------------------------------------------

constexpr int kSampleThreads = 128;

struct SamplePass {
  HmmGeneral task;
  HmmSampleOutputs out;
  HmmMessages messages;
  HmmChunk chunk;
};

// One draw for one sequence, by one warp: lane l has the states [l * part, (l + 1) * part).
template <class Real>
class SampleWarp {
 public:
  SUMPROD_DEVICE SampleWarp(const SamplePass& pass, int64_t slot, int64_t draw)
      : p_(pass.task.problem),
        states_(int(p_.states)),
        length_(gpu::length_on_device(p_, pass.chunk.first + slot)),
        log_normalizer_(pass.messages.log_normalizer[slot]),
        forward_(pass.messages.forward + slot * p_.steps * p_.states),
        matrix_(static_cast<const Real*>(p_.transition) + (pass.chunk.first + slot) * p_.transition_batch) {
    const int64_t offset = (draw * p_.batch + pass.chunk.first + slot) * p_.steps;
    uniforms_ = static_cast<const Real*>(pass.out.uniforms) + offset;
    path_ = pass.out.paths + offset;
    const int part = (states_ + gpu::kWarp - 1) / gpu::kWarp, begin = gpu::lane_of_thread() * part;
    begin_ = begin < states_ ? begin : states_;
    end_ = begin + part < states_ ? begin + part : states_;
  }

  SUMPROD_DEVICE void run() const {
    const int real = log_normalizer_ - log_normalizer_ == 0.0 ? length_ : 0;
    for (int64_t t = real + gpu::lane_of_thread(); t < p_.steps; t += gpu::kWarp) path_[t] = -1;
    int next = -1;
    for (int t = real - 1; t >= 0; --t) {
      next = draw(t, next);
      if (gpu::lane_of_thread() == 0) path_[t] = next;
    }
  }

 private:
  // log of a_t[i] * A[i][next]; of a_t[i] at the end.
  SUMPROD_DEVICE double log_weight(int t, int i, int next) const {
    const double d = forward_[int64_t(t) * states_ + i];
    if (next < 0) return d;
    return d + double(__ldg(matrix_ + t * p_.transition_time + i * p_.transition_from + next * p_.transition_to));
  }

  SUMPROD_DEVICE int draw(int t, int next) const {
    const double uniform = double(uniforms_[t]);
    double top = -infinity<double>();
    for (int i = begin_; i < end_; ++i) {
      const double x = log_weight(t, i, next);
      top = x > top ? x : top;
    }
    top = gpu::warp_max(top);
    double own = 0.0;
    for (int i = begin_; i < end_; ++i) own += exp_of<Real>(log_weight(t, i, next) - top);
    const double before = sum_of_lanes_before(own);
    const double total = __shfl_sync(gpu::kFullWarp, before + own, gpu::kWarp - 1), threshold = uniform * total;
    // Lanes without weight never win, whatever rounding does; if no sum exceeds the threshold, the last with weight.
    const unsigned with_weight = __ballot_sync(gpu::kFullWarp, own > 0.0);
    const unsigned exceeding = __ballot_sync(gpu::kFullWarp, own > 0.0 && before + own > threshold);
    const int winner = exceeding != 0 ? __ffs(int(exceeding)) - 1 : 31 - __clz(int(with_weight));
    int state = 0;
    if (gpu::lane_of_thread() == winner) state = pick(t, next, top, before, threshold);
    return __shfl_sync(gpu::kFullWarp, state, winner);
  }

  SUMPROD_DEVICE static double sum_of_lanes_before(double own) {
    double sum = own;
    for (int d = 1; d < gpu::kWarp; d *= 2) {
      const double x = __shfl_up_sync(gpu::kFullWarp, sum, d);
      if (gpu::lane_of_thread() >= d) sum = x + sum;
    }
    const double before = __shfl_up_sync(gpu::kFullWarp, sum, 1);
    return gpu::lane_of_thread() == 0 ? 0.0 : before;
  }

  // The first of this lane's states at which the cumulative weight exceeds the threshold, or its last with weight.
  SUMPROD_DEVICE int pick(int t, int next, double top, double cumulative, double threshold) const {
    int state = begin_;
    for (int i = begin_; i < end_; ++i) {
      const double weight = exp_of<Real>(log_weight(t, i, next) - top);
      if (!(weight > 0.0)) continue;
      state = i;
      cumulative += weight;
      if (cumulative > threshold) break;
    }
    return state;
  }

  const HmmProblem& p_;
  const int states_, length_;
  const double log_normalizer_;
  const double* forward_;
  const Real *matrix_, *uniforms_;
  int64_t* path_;
  int begin_, end_;
};

template <class Real>
__global__ void __launch_bounds__(kSampleThreads) sample_kernel(SamplePass pass) {
  const int64_t warps = kSampleThreads / gpu::kWarp, all = pass.chunk.count * pass.out.draws;
  for (int64_t n = blockIdx.x * warps + gpu::warp_of_thread(); n < all; n += gridDim.x * warps) {
    const int64_t slot = n / pass.out.draws;
    if (pass.task.only != nullptr && pass.task.only[pass.chunk.first + slot] == 0) continue;
    SampleWarp<Real>(pass, slot, n % pass.out.draws).run();
  }
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

int64_t hmm_general_viterbi_cuda(const HmmGeneral& task, const HmmViterbiOutputs& out, const gpu::Stream& stream) {
  const HmmProblem& p = task.problem;
  ViterbiPass pass = {task, out, {}, gpu::forward_teams(p.states), nullptr, 0, 0, 0, nullptr};
  pass.width = p.states <= 256 ? 1 : (p.states <= 65536 ? 2 : 4);
  pass.slot_bytes = (p.steps * p.states * pass.width + 15) / 16 * 16;
  pass.trace_rows = int(std::min<int64_t>(kTraceBytes / (p.states * pass.width), kTraceSteps));
  const bool outside = ViterbiShared(nullptr, pass).bytes > gpu::properties_of(stream.device).shared_bytes;
  const int64_t work = outside ? 2 * p.states : 0;
  const int64_t each = pass.slot_bytes + work * int64_t(sizeof(double));
  HmmMessages slots = {};
  slots.slots = std::clamp<int64_t>(kPointerBytes / std::max<int64_t>(each, 1), 1, std::max<int64_t>(p.batch, 1));
  gpu::SharedArena arena(static_cast<unsigned char*>(task.scratch));
  pass.pointers = arena.take<unsigned char>(slots.slots * pass.slot_bytes);
  if (outside) pass.work = arena.take<double>(slots.slots * work);
  if (task.scratch == nullptr) return arena.used();
  for_each_chunk(task, slots, [&](const HmmChunk& chunk) {
    pass.chunk = chunk;
    const gpu::LaunchShape shape = {chunk.count, pass.teams.threads, ViterbiShared(nullptr, pass).bytes};
    gpu::launch(p.is_double ? viterbi_kernel<double> : viterbi_kernel<float>, shape, stream, pass);
  });
  return arena.used();
}

int64_t hmm_general_sample_cuda(const HmmGeneral& task, const HmmSampleOutputs& out, const gpu::Stream& stream) {
  const HmmMessages messages = hmm_messages(task, HmmKeep::forward, kForwardRows, stream);
  if (task.scratch == nullptr) return messages.bytes;
  constexpr int64_t kWarps = kSampleThreads / gpu::kWarp;
  for_each_chunk(task, messages, [&](const HmmChunk& chunk) {
    hmm_forward_pass({task, messages, chunk, {}, nullptr, nullptr, out.dead}, stream);
    const int64_t blocks = std::min((chunk.count * out.draws + kWarps - 1) / kWarps, gpu::kMostBlocks);
    const auto kernel = task.problem.is_double ? sample_kernel<double> : sample_kernel<float>;
    if (blocks > 0) gpu::launch(kernel, {blocks, kSampleThreads}, stream, SamplePass{task, out, messages, chunk});
  });
  return messages.bytes;
}

}  // namespace sumprod
