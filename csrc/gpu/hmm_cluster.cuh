// The HMM recursion with a transition matrix that is too large for one block, on a cluster of blocks.
//
// A cluster carries kSequences sequences at once through time, so that every weight read serves several. Its blocks
// share the columns of the matrix, each warp has kClusterColumns of them, and the lanes of a warp share the rows: lane
// l has the rows l, l + 32, ... The first kHeld rows of a lane are in registers, the rest in shared memory, in the
// order in which they are read. The messages of all states are in the shared memory of every block: a state's entries
// for all sequences lie side by side, one 16-byte load per row. A lane adds up its rows for all columns and
// sequences, the lanes then halve the set of sums while they add them, and each ends up with one sum, of one column and
// one sequence, whose new message it stores in all blocks. One cluster barrier per step.
//
// Between the arrival at the barrier and its end each lane keeps messages and prepares emissions: the emission of step
// t + 4 is read at step t; its largest entry is found within the warp (step t + 1), within the block (t + 2), and
// over the cluster (t + 3), and so travels with the barriers of the recursion.
//
// Budget on an H200 (227 KB of shared memory and 64 K registers per block, 128 multiply-adds per clock), float, 4
// sequences, 8 blocks; clocks per step and block:
//   states                    256       512       768
//   weights per block         32 KB     128 KB    288 KB  (96 KB in registers, 192 KB in shared memory)
//   multiply-adds             256       1024      2304
//   shared-memory loads       128       512       2500
//   shuffles of the sums      130       250       370
//   to the other blocks       3.5 KB    7 KB      10.5 KB
// and about 700 clocks for the exchange and its barrier. So B = 64, T = 512, S = 512 (16 clusters, all at once) should
// take 0.5 to 0.6 ms, about twice the time of its arithmetic. 1024 states (512 KB per block) do not fit.
#pragma once

#include "gpu/hmm_cluster_product.cuh"
#include "gpu/hmm_length.cuh"

namespace sumprod::gpu {

template <class A, int Sequences, int Held>
class ClusterRecursion {
 public:
  using Real = typename A::Real;
  static constexpr int kSequences = Sequences, kMostWarps = kMostClusterWarps;
  using Product = ClusterProduct<A, Sequences, Held>;
  using Entries = typename Product::Entries;
  using Weights = typename Product::Weights;
  static constexpr int kOutputs = Product::kOutputs;

  struct Shared {
    Entries* message;  // [2][row]
    Weights* weights;  // of the product
    double* maximum;   // [warp of the cluster][sequence]
    unsigned* key;     // [2][warp][sequence]
    Real* warp_top;    // [2][warp][sequence]
    Real* block_top;   // [4][block][sequence]: read while other blocks may have begun the next step
    int64_t bytes;
    SUMPROD_BOTH Shared(unsigned char* base, const HmmClusterShape& shape) {
      SharedArena arena(base);
      message = arena.take<Entries>(2 * shape.rows * kWarp);
      weights = arena.take<Weights>(Product::packs_in_shared_memory(shape));
      maximum = arena.take<double>(shape.blocks * shape.warps * kSequences);
      key = arena.take<unsigned>(2 * shape.warps * kSequences);
      warp_top = arena.take<Real>(2 * shape.warps * kSequences);
      block_top = arena.take<Real>(4 * shape.blocks * kSequences);
      bytes = arena.used();
    }
  };

  SUMPROD_DEVICE ClusterRecursion(const HmmRecursion& args, const HmmClusterShape& shape)
      : args_(args),
        p_(args.problem),
        shape_(shape),
        shared_(shared_memory(), shape),
        product_(shape, shared_.weights) {
    const int64_t groups = (p_.batch + kSequences - 1) / kSequences, unit = int64_t(blockIdx.x) / shape.blocks;
    backward_ = !args.forward || unit >= groups;
    group_ = unit % groups * kSequences;
    lane_ = lane_of_thread();
    slot_ = lane_ % kSequences;
    owner_ = lane_ < kOutputs;
    first_column_ = (cluster_rank() * shape.warps + warp_of_thread()) * kClusterColumns;
    column_ = first_column_ + lane_ % kOutputs / kSequences;
    real_ = column_ < p_.states && sequence() < p_.batch;
    length_ = length_of_slot(slot_);
    const int64_t first = backward_ ? length_ - 1 : 0;
    emission_ = static_cast<const Real*>(p_.emission) + sequence() * p_.emission_batch + first * p_.emission_time +
                column_ * p_.emission_state;
    emission_step_ = backward_ ? -p_.emission_time : p_.emission_time;
    kept_ = static_cast<Real*>(backward_ ? args.backward_messages : args.forward_messages);
    keeps_ = kept_ != nullptr && owner_ && column_ < args.message_row && length_ > 0;
    if (keeps_) kept_ += (sequence() * p_.steps + first) * args.message_row + column_;
    keeps_predicted_ = backward_ || args.forward_predicted;
    keeps_exponents_ = args.forward_exponents != nullptr && !backward_ && owner_ && column_ == 0 && real_;
  }

  SUMPROD_DEVICE void run() {
    for (int k = int(threadIdx.x); k < 2 * shape_.rows * kWarp * kSequences; k += shape_.warps * kWarp) {
      reinterpret_cast<Real*>(shared_.message)[k] = A::zero();
    }
    cluster_sync();  // all blocks are there, and their messages are clear
    const WeightSummary summary = load_weights();
    trust_.watch(summary);
    int steps = 0;
    for (int q = 0; q < kSequences; ++q) {
      const int length = length_of_slot(q);
      steps = length > steps ? length : steps;
    }
    if (trust_.hopeless) steps = 0;
    if (steps > 0) start();
    for (int t = 0; t < steps; ++t) step(t);
    finish(steps, summary);
  }

 private:
  SUMPROD_DEVICE int64_t sequence() const { return group_ + slot_; }

  SUMPROD_DEVICE int length_of_slot(int slot) const {
    return group_ + slot < p_.batch ? length_on_device(p_, group_ + slot) : 0;
  }

  // ---- weights

  SUMPROD_DEVICE WeightSummary load_weights() {
    TransitionSummary summary = product_.load(p_, backward_, first_column_);
    summary.highest = cluster_max(warp_max(summary.highest));
    summary.lowest = -cluster_max(warp_max(-summary.lowest));
    summary.zero = cluster_max(warp_max(summary.zero ? 1.0 : 0.0)) > 0.0;
    summary.invalid = cluster_max(warp_max(summary.invalid ? 1.0 : 0.0)) > 0.0;
    const WeightSummary weights = summary.weights<A>();
    product_.exponentiate(Real(weights.shift));
    return weights;
  }

  // ---- maxima

  // Over the lanes that have the same sequence.
  template <class T>
  SUMPROD_DEVICE T slot_max(T x) const {
#pragma unroll
    for (int d = kWarp / 2; d >= kSequences; d /= 2) {
      const T y = __shfl_xor_sync(kFullWarp, x, d);
      x = y > x ? y : x;
    }
    return x;
  }

  // Over a table [count][sequence] of at most kMostWarps rows, of this lane's sequence.
  template <class T>
  SUMPROD_DEVICE T table_max(const T* table, int count, T x) const {
#pragma unroll
    for (int first = 0; first < kMostWarps * kSequences; first += kWarp) {
      const int k = first + lane_;
      if (k < count * kSequences) x = table[k] > x ? table[k] : x;
    }
    return slot_max(x);
  }

  // Over the cluster, per sequence. Takes its time.
  SUMPROD_DEVICE double cluster_max(double x) const {
    x = slot_max(x);
    const int warp = cluster_rank() * shape_.warps + warp_of_thread();
    if (lane_ < kSequences) {
      double* own = shared_.maximum + warp * kSequences + lane_;
      for (int b = 0; b < shape_.blocks; ++b) *cluster_shared(own, b) = x;
    }
    cluster_sync();
    x = -infinity<double>();
    for (int b = 0; b < shape_.blocks; ++b) {
      x = table_max(shared_.maximum + b * shape_.warps * kSequences, shape_.warps, x);
    }
    cluster_sync();
    return x;
  }

  // ---- emissions

  SUMPROD_DEVICE Real emission(int t) const {
    return real_ && t < length_ ? emission_[t * emission_step_] : -infinity<Real>();
  }

  // The largest emission of step t + 3 within this warp.
  SUMPROD_DEVICE void note_top(int t, Real emission) const {
    const Real top = slot_max(emission);
    if (lane_ < kSequences) {
      shared_.warp_top[((t & 1) * shape_.warps + warp_of_thread()) * kSequences + lane_] = top;
    }
  }
  // That of step t + 2 within this block, for all blocks.
  SUMPROD_DEVICE void pass_top(int t) const {
    if (warp_of_thread() != shape_.warps - 1) return;
    const Real* tops = shared_.warp_top + ((t - 1) & 1) * shape_.warps * kSequences;
    const Real top = table_max(tops, shape_.warps, -infinity<Real>());
    Real* own = shared_.block_top + ((t & 3) * shape_.blocks + cluster_rank()) * kSequences + slot_;
    const int block = lane_ / kSequences;
    if (block < shape_.blocks) *cluster_shared(own, block) = top;
  }
  // The factor of step t + 1.
  SUMPROD_DEVICE void prepare(int t, Real emission) {
    const Real* tops = shared_.block_top + ((t - 1) & 3) * shape_.blocks * kSequences;
    set_factor(t + 1, emission, or_zero(table_max(tops, shape_.blocks, -infinity<Real>())));
  }
  SUMPROD_DEVICE void set_factor(int t, Real emission, Real top) {
    factor_ = A::factor(emission, top);
    possible_ = emission > -infinity<Real>();
    if (t < length_) tops_ += double(top);
  }

  // Step 0, with the initial potential: large offsets, which cancel in every posterior, are taken out of both before
  // they are added. Then the tops of the next two steps, as far as steps -2 and -1 would have found them.
  SUMPROD_DEVICE void start() {
    Real x = real_ ? Real(0) : -infinity<Real>();
    if (!backward_ && real_) {
      x = static_cast<const Real*>(p_.initial)[sequence() * p_.initial_batch + column_ * p_.initial_state];
    }
    const Real raw = emission(0);
    const Real initial_top = or_zero(Real(cluster_max(double(x))));
    const Real emission_top = or_zero(Real(cluster_max(double(raw))));
    const Real both = (x - initial_top) + (raw - emission_top);
    tops_ = double(initial_top) + double(emission_top);
    set_factor(0, both, or_zero(Real(cluster_max(double(both)))));
    for (int k = 0; k < 3; ++k) raw_[k] = emission(k + 1);
    note_top(-2, raw_[0]);
    cluster_sync();
    pass_top(-1);
    note_top(-1, raw_[1]);
    cluster_sync();
  }

  // ---- steps

  SUMPROD_DEVICE const Entries* messages_of(int t) const { return shared_.message + (t & 1) * shape_.rows * kWarp; }

  SUMPROD_DEVICE void step(int t) {
    const Real incoming = emission(t + 4);
    Real sum = A::one();
    if (t > 0) {
      note_keys(t);
      sum = product_.run(messages_of(t - 1));
    }
    typename A::Scale scale = 0;
    if (t >= 2) {
      const unsigned key = earlier_key(t);
      trust_.note_depth(key);
      scale = A::correction(key, scale_);
    }
    const Real predicted = A::rescaled(sum, scale);
    const Real message = A::with_emission(predicted, factor_);
    const bool goes_on = t < length_;
    if (goes_on) own_ = message;
    send(t);
    note_top(t, raw_[2]);
    pass_top(t);
    cluster_arrive();
    scale_ = scale;
    if (goes_on) {
      scales_ += scale;
      trust_.check(sum, message, possible_);
      keep(t, keeps_predicted_ ? predicted : message, scale);
    }
    prepare(t, raw_[0]);
    raw_[0] = raw_[1];
    raw_[1] = raw_[2];
    raw_[2] = incoming;
    cluster_wait();
  }

  SUMPROD_DEVICE void send(int t) const {
    if (!owner_) return;
    Real* own = &shared_.message[(t & 1) * shape_.rows * kWarp + column_].of[slot_];
#pragma unroll
    for (int b = 0; b < kMostClusterBlocks; ++b) {
      if (b < shape_.blocks) *cluster_shared(own, b) = own_;
    }
  }

  SUMPROD_DEVICE void keep(int t, Real message, typename A::Scale scale) {
    if (keeps_) {
      *kept_ = message;
      kept_ += backward_ ? -args_.message_row : args_.message_row;
    }
    if constexpr (!A::kMaxPlus) {
      if (keeps_exponents_) args_.forward_exponents[sequence() * p_.steps + t] = scale;
    }
  }

  // ---- scales

  // The keys of the message of step t - 1, over the rows that fall to this warp.
  SUMPROD_DEVICE void note_keys(int t) const {
    unsigned key[kSequences] = {};
    const Entries* message = messages_of(t - 1) + lane_;
#pragma unroll
    for (int n = 0; n < kMostRowsPerWarp; ++n) {
      const int k = warp_of_thread() + n * shape_.warps;
      if (k >= shape_.rows) continue;
      const Entries entries = message[k * kWarp];
#pragma unroll
      for (int q = 0; q < kSequences; ++q) {
        const unsigned x = A::key(entries.of[q]);
        key[q] = x > key[q] ? x : key[q];
      }
    }
    unsigned own = 0;
#pragma unroll
    for (int q = 0; q < kSequences; ++q) {
      const unsigned top = __reduce_max_sync(kFullWarp, key[q]);
      if (lane_ == q) own = top;
    }
    if (lane_ < kSequences) shared_.key[((t & 1) * shape_.warps + warp_of_thread()) * kSequences + lane_] = own;
  }

  // The key of the message of step t - 2.
  SUMPROD_DEVICE unsigned earlier_key(int t) const {
    return table_max(shared_.key + ((t - 1) & 1) * shape_.warps * kSequences, shape_.warps, 0u);
  }

  // ---- the end

  SUMPROD_DEVICE void finish(int steps, const WeightSummary& summary) {
    if (A::kMaxPlus && steps > 1) trust_.note_depth(earlier_key(steps));
    if (cluster_rank() == 0 && warp_of_thread() == 0) finish_sequences(steps, summary);
    if (trust_.redo && length_ > 0) raise_flag(args_.redo + sequence());
  }

  // By the first warp of the cluster.
  SUMPROD_DEVICE void finish_sequences(int steps, const WeightSummary& summary) {
    const Real total = steps > 0 ? slot_total(messages_of(steps - 1)) : A::zero();
    trust_.note_depth(A::key(total));
    if (trust_.hopeless) trust_.redo = true;
    if (backward_ || lane_ >= kSequences || sequence() >= p_.batch) return;
    double value = 0.0;  // a sequence without steps has one path, of weight 1
    if (length_ > 0) {
      value = (A::kMaxPlus ? double(total) : log(double(total))) + tops_ + A::log_of(double(scales_)) +
              summary.shift * double(length_ - 1);
    }
    if (!(value - value == 0.0)) {
      trust_.redo = true;
    } else if (args_.total != nullptr) {
      static_cast<Real*>(args_.total)[sequence()] = Real(value);
    }
  }

  SUMPROD_DEVICE Real slot_total(const Entries* message) const {
    Real own = A::zero();
    for (int k = lane_ / kSequences; k < shape_.rows * kWarp; k += kWarp / kSequences) {
      own = A::merge(own, message[k].of[slot_]);
    }
#pragma unroll
    for (int d = kWarp / 2; d >= kSequences; d /= 2) own = A::merge(own, __shfl_xor_sync(kFullWarp, own, d));
    return own;
  }

  const HmmRecursion& args_;
  const HmmProblem& p_;
  const HmmClusterShape& shape_;
  const Shared shared_;
  HmmTrust<A> trust_;
  int64_t group_;                       // first sequence of the cluster
  int lane_, slot_;                     // slot: which of the cluster's sequences
  int first_column_, column_, length_;  // of the warp; of the lane; of the sequence
  bool backward_, owner_, real_;        // owner: others only repeat; real: neither padding
  bool keeps_, keeps_predicted_, keeps_exponents_, possible_ = false;
  const Real* emission_;
  int64_t emission_step_;
  Real* kept_;
  Product product_;
  Real factor_ = 0, raw_[3];  // of this step; emissions of the next three
  Real own_ = A::zero();      // the last message
  typename A::Scale scale_ = 0;
  double tops_ = 0.0;
  typename A::ScaleSum scales_ = 0;
};

}  // namespace sumprod::gpu
