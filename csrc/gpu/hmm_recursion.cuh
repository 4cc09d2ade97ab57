// The kernel of the resident HMM recursion (gpu/hmm_recursion.h).
//
// A group of kStates * kSplit threads carries one sequence through time with the transition matrix in registers:
// thread (j, r) holds kRows of the weights into state j and adds up its part of the sum over the states before;
// kSplit neighbouring lanes then add their parts. Messages pass through shared memory, one barrier per step. Small
// groups are parts of a warp and need no block barrier. Emissions are read kUnroll steps at a time, two such tiles
// ahead; their largest entries and exponentials are made one tile ahead, off the path from message to message.
//
// The backward pass is the same recursion on the reversed sequence with the transposed matrix. Pieces of sequences
// (gpu/hmm_pieces.h) differ in where they start and in what they leave; their weights, steps and checks are the same.
#pragma once

#include "gpu/hmm_group.cuh"
#include "gpu/hmm_part.cuh"

namespace sumprod::gpu {

template <class A, int States, int Split, int Unroll>
class ResidentRecursion {
 public:
  using Real = typename A::Real;
  using Group = HmmGroup<States, Split>;
  static constexpr int kStates = States, kSplit = Split, kUnroll = Unroll;
  static constexpr int kRows = kStates / kSplit;  // of the matrix, per thread
  static constexpr int kGroup = Group::kSize, kGroups = Group::kGroups, kThreads = Group::kThreads;
  static constexpr int kWarps = Group::kWarps;
  static constexpr bool kInWarp = Group::kInWarp;
  static_assert(kRows % 4 == 0);

  struct Shared {
    Real* message;       // [group][2][state]
    unsigned* key;       // [2][warp of the group]
    Real* emission_top;  // [2][step of the tile][warp of the group]
    double* reductions;  // of the group
    int64_t bytes;
    SUMPROD_BOTH explicit Shared(unsigned char* base) {
      SharedArena arena(base);
      message = arena.take<Real>(kGroups * 2 * kStates);
      key = arena.take<unsigned>(2 * kWarps);
      emission_top = arena.take<Real>(2 * kUnroll * kWarps);
      reductions = arena.take<double>(Group::kReductions);
      bytes = arena.used();
    }
  };

  SUMPROD_DEVICE explicit ResidentRecursion(const HmmParts& parts)
      : parts_(parts),
        args_(parts.recursion),
        p_(args_.problem),
        shared_(shared_memory()),
        group_(shared_.reductions),
        part_of_(parts, int64_t(blockIdx.x) * kGroups + int(threadIdx.x) / kGroup) {
    const int lane = int(threadIdx.x) % kGroup;
    state_ = lane / kSplit;
    part_ = lane % kSplit;
    length_ = part_of_.length;
    backward_ = part_of_.backward;
    message_ = shared_.message + int(threadIdx.x) / kGroup * (2 * kStates);
    const int64_t sequence = part_of_.sequence, first = part_of_.first_step();
    emission_ = static_cast<const Real*>(p_.emission) + sequence * p_.emission_batch + first * p_.emission_time +
                state_ * p_.emission_state;
    emission_step_ = backward_ ? -p_.emission_time : p_.emission_time;
    kept_ = static_cast<Real*>(backward_ ? args_.backward_messages : args_.forward_messages);
    const int64_t row = args_.message_row;
    kept_at_ = (sequence * p_.steps + first) * row + state_;
    kept_step_ = int(backward_ ? -row : row);
    keeps_ = kept_ != nullptr && part_ == 0 && state_ < row && !parts.transfer;
    keeps_predicted_ = backward_ || args_.forward_predicted;
    exponents_ = args_.forward_exponents;
    if (exponents_ != nullptr) exponents_ += sequence * p_.steps + part_of_.begin;
    keeps_exponents_ = exponents_ != nullptr && !backward_ && part_ == 0 && state_ == 0 && !parts.transfer;
  }

  SUMPROD_DEVICE void run() {
    const WeightSummary summary = load_weights();
    watch(summary);
    steps_ = kInWarp ? warp_max(length_) : length_;
    if (steps_ > 0) {
      Real raw[kUnroll], incoming[kUnroll];
      load_tile(0, raw);
      load_tile(kUnroll, incoming);
      start(raw);
      start_message();
      for (int first = 0; first < steps_; first += kUnroll) run_tile(first, raw, incoming);
    }
    finish(summary);
  }

 private:
  // Row of the matrix whose weight is in weight_[k]: parts take turns of four, so that what the lanes of a warp read
  // of a message lies side by side.
  SUMPROD_DEVICE int row_of(int k) const { return 4 * (kSplit * (k / 4) + part_) + k % 4; }

  // ---- weights

  // Reads the part of the matrix that this thread needs, and learns about the whole from its group.
  SUMPROD_DEVICE WeightSummary load_weights() {
    const int64_t from = backward_ ? p_.transition_to : p_.transition_from;
    const int64_t to = backward_ ? p_.transition_from : p_.transition_to;
    const Real* potential = static_cast<const Real*>(p_.transition) + part_of_.sequence * p_.transition_batch;
    TransitionSummary summary;
    for (int k = 0; k < kRows; ++k) {
      const int i = row_of(k);
      weight_[k] = -infinity<Real>();
      if (p_.steps > 1 && i < p_.states && state_ < p_.states) {
        weight_[k] = potential[i * from + state_ * to];
        summary.add(weight_[k]);
      }
    }
    const WeightSummary weights = group_.of_all(summary).template weights<A>();
    for (int k = 0; k < kRows; ++k) weight_[k] = A::weight(weight_[k], Real(weights.shift));
    return weights;
  }

  // Steps that the matrix takes part in.
  SUMPROD_DEVICE int weighed_steps() const { return length_ - int(!part_of_.goes_on()); }

  // What the weights mean for a sequence that uses them: one step alone does not, so that its result is the same
  // whatever else is in the batch.
  SUMPROD_DEVICE void watch(const WeightSummary& summary) {
    if (weighed_steps() <= 0) return;
    trust_.watch(summary);
    if (!trust_.hopeless) return;
    trust_.redo = true;
    length_ = 0;
  }

  // ---- emissions

  SUMPROD_DEVICE void load_tile(int first, Real (&tile)[kUnroll]) const {
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const bool inside = first + k < length_ && state_ < p_.states;
      tile[k] = inside ? emission_[int64_t(first + k) * emission_step_] : -infinity<Real>();
    }
  }

  // Prepares the first tile, with the initial potential in its first step. Large offsets, which cancel in every
  // posterior, are taken out of both before they are added.
  SUMPROD_DEVICE void start(Real (&raw)[kUnroll]) {
    const Real* initial = static_cast<const Real*>(p_.initial) + part_of_.sequence * p_.initial_batch;
    Real x = state_ < p_.states ? Real(0) : -infinity<Real>();
    if (!backward_ && part_of_.exists && part_of_.place == 0 && state_ < p_.states) {
      x = initial[state_ * p_.initial_state];
    }
    const Real initial_top = group_.top(x), emission_top = group_.top(raw[0]);
    raw[0] = (x - initial_top) + (raw[0] - emission_top);
    tops_ = double(initial_top) + double(emission_top);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) prepare(k, k, raw[k], group_.top(raw[k]));
    possible_ = next_possible_;
    next_possible_ = 0;
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) factor_[k] = next_factor_[k];
  }

  // The message before the first step, or, for parts that do not go on from one, what the first step predicts.
  SUMPROD_DEVICE void start_message() {
    own_ = A::one();
    if (parts_.transfer && part_of_.place > 0) {
      own_ = state_ == part_of_.state ? A::one() : A::zero();
    } else if (!parts_.whole() && (backward_ || part_of_.place > 0)) {
      const HmmStarts& starts = parts_.pieces.starts;
      const double* start = (backward_ ? starts.backward : starts.forward) + part_of_.row(parts_) * p_.states;
      const bool real = state_ < p_.states && length_ > 0;
      const double x = real ? start[state_] : double(A::zero());
      own_ = Real(x);
      if (real) trust_.check(Real(x > 0.0), own_, !backward_ || (possible_ & 1u) != 0);
    }
    if (part_ == 0) message_[kStates + state_] = own_;
    group_.meet();
  }

  // The factor of step `t`, the k-th of its tile.
  SUMPROD_DEVICE void prepare(int k, int t, Real emission, Real top) {
    next_factor_[k] = A::factor(emission, top);
    if (emission > -infinity<Real>()) next_possible_ |= 1u << k;
    if (t < length_) tops_ += double(top);
  }

  // ---- steps

  // One tile: `raw` has the emissions of the tile after it, `incoming` those of the one after that.
  SUMPROD_DEVICE void run_tile(int first, Real (&raw)[kUnroll], Real (&incoming)[kUnroll]) {
    // On the first call `raw` is this tile's own and has been prepared.
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) raw[k] = incoming[k];
    load_tile(first + 2 * kUnroll, incoming);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int t = first + k;
      if (t < steps_) {  // the same for all threads that meet
        step(t, k);
        if constexpr (kInWarp) {
          prepare(k, t + kUnroll, raw[k], group_.top(raw[k]));
        } else {
          note_emission(first / kUnroll + 1, k, raw[k]);
        }
        group_.meet();
      }
    }
    if constexpr (!kInWarp) {
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (first + k < steps_) prepare(k, first + kUnroll + k, raw[k], noted_top(first / kUnroll + 1, k));
      }
    }
    possible_ = next_possible_;
    next_possible_ = 0;
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) factor_[k] = next_factor_[k];
  }

  // Large groups find the largest emission of a step by way of shared memory.
  SUMPROD_DEVICE void note_emission(int tile, int k, Real emission) {
    const Real top = warp_top(emission);
    if (lane_of_thread() == 0) shared_.emission_top[((tile & 1) * kUnroll + k) * kWarps + warp_of_thread()] = top;
  }
  SUMPROD_DEVICE static float warp_top(float x) {
    return from_ordered_key(__reduce_max_sync(kFullWarp, ordered_key(x)));
  }
  SUMPROD_DEVICE static double warp_top(double x) { return warp_max(x); }
  SUMPROD_DEVICE Real noted_top(int tile, int k) const {
    const Real* tops = shared_.emission_top + ((tile & 1) * kUnroll + k) * kWarps;
    return or_zero(warp_top(tops[lane_of_thread() % kWarps]));
  }

  SUMPROD_DEVICE void step(int t, int k) {
    const unsigned key = group_key(t);  // of the message before
    const Real sum = t == 0 && !part_of_.goes_on() ? own_ : propagate(message_ + ((t - 1) & 1) * kStates);
    const typename A::Scale scale = t < 2 ? typename A::Scale(0) : A::correction(earlier_key(t), scale_);
    const Real predicted = A::rescaled(sum, scale);
    const Real message = A::with_emission(predicted, factor_[k]);
    if (A::kMaxPlus && t > 0) trust_.note_depth(kInWarp ? key : (t < 2 ? A::kEmptyKey : earlier_key(t)));
    last_key_ = key;
    scale_ = scale;
    if (t < length_) {
      own_ = message;
      scales_ += scale;
      trust_.check(sum, message, (possible_ >> k & 1u) != 0);
      keep(t, keeps_predicted_ ? predicted : message, scale);
    }
    if (part_ == 0) message_[(t & 1) * kStates + state_] = own_;
  }

  // sum over i of message[i] * weight[i][own state], over both parts.
  SUMPROD_DEVICE Real propagate(const Real* message) const {
    const Four<Real>* four = reinterpret_cast<const Four<Real>*>(message);
    Real a = A::zero(), b = A::zero(), c = A::zero(), d = A::zero();
#pragma unroll
    for (int k = 0; k < kRows / 4; ++k) {
      const Four<Real> m = four[kSplit * k + part_];
      a = A::accumulate(a, m.x, weight_[4 * k]);
      b = A::accumulate(b, m.y, weight_[4 * k + 1]);
      c = A::accumulate(c, m.z, weight_[4 * k + 2]);
      d = A::accumulate(d, m.w, weight_[4 * k + 3]);
    }
    Real sum = A::merge(A::merge(a, b), A::merge(c, d));
#pragma unroll
    for (int n = 1; n < kSplit; n *= 2) sum = A::merge(sum, __shfl_xor_sync(kFullWarp, sum, n));
    return sum;
  }

  // The key of the message of step t - 1, which is in own_; in large groups, that of this warp's states only.
  SUMPROD_DEVICE unsigned group_key(int t) {
    unsigned key = A::key(own_);
    if constexpr (kGroup < kWarp) {
      key = warp_max(key, kGroup);
    } else {
      key = __reduce_max_sync(kFullWarp, key);
    }
    if constexpr (!kInWarp) {
      if (lane_of_thread() == 0) shared_.key[((t - 1) & 1) * kWarps + warp_of_thread()] = key;
    }
    return key;
  }

  // The key of the message of step t - 2.
  SUMPROD_DEVICE unsigned earlier_key(int t) const {
    if constexpr (kInWarp) {
      return last_key_;
    } else {
      return __reduce_max_sync(kFullWarp, shared_.key[((t - 2) & 1) * kWarps + lane_of_thread() % kWarps]);
    }
  }

  SUMPROD_DEVICE void keep(int t, Real message, typename A::Scale scale) {
    if (keeps_) kept_[kept_at_] = message;
    kept_at_ += kept_step_;
    if constexpr (!A::kMaxPlus) {
      if (keeps_exponents_ && (t > 0 || !part_of_.goes_on())) exponents_[t] = scale;
    }
  }

  // ---- the end

  SUMPROD_DEVICE void finish(const WeightSummary& summary) {
    const Real total = group_.template merge<A>(part_ == 0 && state_ < p_.states ? own_ : A::zero());
    if constexpr (A::kMaxPlus) {
      if (length_ > 0) trust_.note_depth(A::key(total));
      if (!kInWarp && length_ > 1) trust_.note_depth(earlier_key(length_));
    }
    if (!parts_.whole() && !parts_.transfer) note_next_exponent();
    const bool flagged = group_.any(trust_.redo);
    if (!part_of_.exists || part_ != 0) return;
    if (parts_.transfer && length_ > 0) store_transfer(summary);
    if (state_ != 0) return;
    if (flagged) raise_flag(args_.redo + part_of_.sequence);
    if (parts_.whole() && !backward_ && !flagged) store_total(total, summary);
  }

  SUMPROD_DEVICE void store_total(Real total, const WeightSummary& summary) {
    double value = 0.0;  // a sequence without steps has one path, of weight 1
    if (length_ > 0) {
      const double log_total = A::kMaxPlus ? double(total) : log(double(total));
      value = log_total + common_log(summary) + A::log_of(double(scales_));
    }
    if (!(value - value == 0.0)) {
      raise_flag(args_.redo + part_of_.sequence);
    } else if (args_.total != nullptr) {
      static_cast<Real*>(args_.total)[part_of_.sequence] = Real(value);
    }
  }

  // What has been taken out of emissions and weights.
  SUMPROD_DEVICE double common_log(const WeightSummary& summary) const {
    return tops_ + summary.shift * double(weighed_steps());
  }

  // One row of the matrix of a piece.
  SUMPROD_DEVICE void store_transfer(const WeightSummary& summary) {
    const HmmTransfers& transfers = parts_.pieces.transfers;
    const int64_t place = part_of_.row(parts_), row = place * p_.states + part_of_.state;
    if (state_ < p_.states) transfers.matrix[row * p_.states + state_] = double(own_);
    if (state_ != 0) return;
    transfers.order[row] = double(A::kMaxPlus ? scales_ : -scales_);
    if (part_of_.state > 0) return;
    transfers.log[place] = common_log(summary);
    if (part_of_.place == 1) parts_.pieces.watched[part_of_.sequence] = trust_.watched;
  }

  // The next piece starts from a message that equals the last one here but for a power of two. Its first row is
  // relative to that message, and the exponent of a row to the row before.
  SUMPROD_DEVICE void note_next_exponent() {
    if (backward_ || part_of_.last || exponents_ == nullptr) return;
    const double* order = parts_.pieces.starts.order + part_of_.row(parts_);
    const double own = (part_of_.place > 0 ? order[0] : 0.0) - double(scales_), exponent = own - order[1];
    const bool sane = exponent >= -900.0 && exponent <= 900.0;
    if (!sane) trust_.redo = true;
    if (keeps_exponents_) exponents_[length_] = sane ? int32_t(exponent) : 0;
  }

  const HmmParts& parts_;
  const HmmRecursion& args_;
  const HmmProblem& p_;
  const Shared shared_;
  const Group group_;
  const HmmPart part_of_;
  int state_, part_;
  bool backward_;
  HmmTrust<A> trust_;
  int length_, steps_ = 0;  // of this part, and of all that meet
  Real* message_;
  const Real* emission_;
  int64_t emission_step_;
  // Where this state's messages go, and which.
  Real* kept_;
  int64_t kept_at_;
  int kept_step_;
  bool keeps_, keeps_predicted_, keeps_exponents_;
  int32_t* exponents_;
  Real weight_[kRows];
  Real factor_[kUnroll], next_factor_[kUnroll];  // of this tile and the next
  unsigned possible_ = 0, next_possible_ = 0;    // bit k: the emission of the tile's k-th step is not -inf
  Real own_ = A::zero();                         // the last message, of this state
  typename A::Scale scale_ = 0;
  unsigned last_key_ = 0;
  double tops_ = 0.0;
  typename A::ScaleSum scales_ = 0;
};

}  // namespace sumprod::gpu
