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

#include "gpu/hmm_arithmetic.cuh"
#include "gpu/hmm_part.cuh"

namespace sumprod::gpu {

template <class A, int States, int Split, int Unroll>
class ResidentRecursion {
 public:
  using Real = typename A::Real;
  static constexpr int kStates = States, kSplit = Split, kUnroll = Unroll;
  static constexpr int kRows = kStates / kSplit;    // of the matrix, per thread
  static constexpr int kGroup = kStates * kSplit;   // threads per sequence
  static constexpr bool kInWarp = kGroup <= kWarp;  // a group meets without a block barrier
  static constexpr int kThreads = kGroup < 128 ? 128 : kGroup;
  static constexpr int kGroups = kThreads / kGroup;  // sequences per block
  static constexpr int kWarps = kInWarp ? 1 : kGroup / kWarp;
  static constexpr float kFar = 131072;  // max-plus floats are trusted up to so far from the best
  static_assert(kRows % 4 == 0 && (kInWarp || kGroups == 1));

  struct Shared {
    Real* message;       // [group][2][state]
    unsigned* key;       // [2][warp of the group]
    Real* emission_top;  // [2][step of the tile][warp of the group]
    double* reduction;   // [warp of the block]
    int64_t bytes;
    SUMPROD_BOTH explicit Shared(unsigned char* base) {
      SharedArena arena(base);
      message = arena.take<Real>(kGroups * 2 * kStates);
      key = arena.take<unsigned>(2 * kWarps);
      emission_top = arena.take<Real>(2 * kUnroll * kWarps);
      reduction = arena.take<double>(kThreads / kWarp);
      bytes = arena.used();
    }
  };

  SUMPROD_DEVICE explicit ResidentRecursion(const HmmParts& parts)
      : parts_(parts),
        args_(parts.recursion),
        p_(args_.problem),
        shared_(shared_memory()),
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
    const bool any = p_.steps > 1;
    double highest = -infinity<double>(), lowest = infinity<double>();
    bool zero = false, invalid = false;
    for (int k = 0; k < kRows; ++k) {
      const int i = row_of(k);
      Real x = -infinity<Real>();
      if (any && i < p_.states && state_ < p_.states) {
        x = potential[i * from + state_ * to];
        zero |= x == -infinity<Real>();
        invalid |= !(x < infinity<Real>());
        if (x > -infinity<Real>() && x < infinity<Real>()) {
          highest = double(x) > highest ? double(x) : highest;
          lowest = double(x) < lowest ? double(x) : lowest;
        }
      }
      weight_[k] = x;
    }
    highest = group_max(highest);
    lowest = -group_max(-lowest);
    zero = any_of_group(zero);
    invalid = any_of_group(invalid);
    const bool none = highest == -infinity<double>();
    const Real shift = none || A::kMaxPlus ? Real(0) : Real(highest);
    for (int k = 0; k < kRows; ++k) weight_[k] = A::weight(weight_[k], shift);
    return {double(shift), none ? 0.0 : lowest - highest, !zero, invalid};
  }

  // The largest of the group's numbers. For all threads of the block at once.
  SUMPROD_DEVICE double group_max(double x) {
    if constexpr (kInWarp) {
      return warp_max(x, kGroup);
    } else {
      x = warp_max(x);
      __syncthreads();
      if (lane_of_thread() == 0) shared_.reduction[warp_of_thread()] = x;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) x = shared_.reduction[w] > x ? shared_.reduction[w] : x;
      return x;
    }
  }

  // Steps that the matrix takes part in.
  SUMPROD_DEVICE int weighed_steps() const { return length_ - int(!part_of_.goes_on()); }

  // What the weights mean for a sequence that uses them: one step alone does not, so that its result is the same
  // whatever else is in the batch.
  SUMPROD_DEVICE void watch(const WeightSummary& summary) {
    if (weighed_steps() <= 0) return;
    bool hopeless = summary.invalid;
    if constexpr (!A::kMaxPlus) hopeless = hopeless || summary.lowest < LinearTrust<Real>::kSparse;
    if (hopeless) {
      redo_ = true;
      length_ = 0;
      return;
    }
    if constexpr (!A::kMaxPlus) {
      watched_ = !(summary.dense && summary.lowest >= LinearTrust<Real>::kDense);
      floor_ = power_of_two(int(LinearTrust<Real>::kProduct - summary.lowest / kLn2), Real());
    }
  }

  // ---- emissions

  SUMPROD_DEVICE void load_tile(int first, Real (&tile)[kUnroll]) const {
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const bool inside = first + k < length_ && state_ < p_.states;
      tile[k] = inside ? emission_[int64_t(first + k) * emission_step_] : -infinity<Real>();
    }
  }

  SUMPROD_DEVICE static Real or_zero(Real x) { return x == -infinity<Real>() ? Real(0) : x; }

  // The largest over the states of the sequence, or 0 where there is none.
  SUMPROD_DEVICE Real group_top(Real x) {
    if constexpr (kInWarp) {
      return or_zero(warp_max(x, kGroup));
    } else {
      return or_zero(Real(group_max(double(x))));
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
    const Real initial_top = group_top(x), emission_top = group_top(raw[0]);
    raw[0] = (x - initial_top) + (raw[0] - emission_top);
    tops_ = double(initial_top) + double(emission_top);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) prepare(k, k, raw[k], group_top(raw[k]));
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
      if (real) check(Real(x > 0.0), own_, !backward_ || (possible_ & 1u) != 0);
    }
    if (part_ == 0) message_[kStates + state_] = own_;
    meet();
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
          prepare(k, t + kUnroll, raw[k], group_top(raw[k]));
        } else {
          note_emission(first / kUnroll + 1, k, raw[k]);
        }
        meet();
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

  SUMPROD_DEVICE void meet() const {
    if constexpr (kInWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
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
    if (A::kMaxPlus && t > 0) note_depth(kInWarp ? key : (t < 2 ? A::kEmptyKey : earlier_key(t)));
    last_key_ = key;
    scale_ = scale;
    if (t < length_) {
      own_ = message;
      scales_ += scale;
      check(sum, message, (possible_ >> k & 1u) != 0);
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

  // Max-plus: all states far below what was expected two steps before have lost digits.
  SUMPROD_DEVICE void note_depth(unsigned key) {
    if (key != A::kEmptyKey && from_ordered_key(key) < -kFar) redo_ = true;
  }

  // Notes what these numbers cannot hold.
  SUMPROD_DEVICE void check(Real sum, Real message, bool possible) {
    if constexpr (A::kMaxPlus) {
      // A state so far from the best that its rounding could matter; those behind masks (-1e9 and below) are left
      // out, unless they are all that is left (note_depth).
      constexpr float kMask = -1e8f;
      const bool within = message <= kFar && !(message < -kFar && message > kMask);  // NaN is not
      if (!within) redo_ = true;
    } else if (watched_) {
      if (sum > Real(0) && possible && message < floor_) redo_ = true;
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
    const Real total = group_total(part_ == 0 && state_ < p_.states ? own_ : A::zero());
    if constexpr (A::kMaxPlus) {
      if (length_ > 0) note_depth(A::key(total));
      if (!kInWarp && length_ > 1) note_depth(earlier_key(length_));
    }
    if (!parts_.whole() && !parts_.transfer) note_next_exponent();
    const bool flagged = any_of_group(redo_);
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
    if (part_of_.place == 1) parts_.pieces.watched[part_of_.sequence] = watched_;
  }

  // The next piece starts from a message that equals the last one here but for a power of two. Its first row is
  // relative to that message, and the exponent of a row to the row before.
  SUMPROD_DEVICE void note_next_exponent() {
    if (backward_ || part_of_.last || exponents_ == nullptr) return;
    const double* order = parts_.pieces.starts.order + part_of_.row(parts_);
    const double own = (part_of_.place > 0 ? order[0] : 0.0) - double(scales_), exponent = own - order[1];
    const bool sane = exponent >= -900.0 && exponent <= 900.0;
    if (!sane) redo_ = true;
    if (keeps_exponents_) exponents_[length_] = sane ? int32_t(exponent) : 0;
  }

  SUMPROD_DEVICE Real group_total(Real x) {
    constexpr int kWidth = kInWarp ? kGroup : kWarp;
    for (int d = kWidth / 2; d > 0; d /= 2) x = A::merge(x, __shfl_xor_sync(kFullWarp, x, d));
    if constexpr (!kInWarp) {
      __syncthreads();
      if (lane_of_thread() == 0) shared_.reduction[warp_of_thread()] = double(x);
      __syncthreads();
      x = Real(shared_.reduction[0]);
      for (int w = 1; w < kWarps; ++w) x = A::merge(x, Real(shared_.reduction[w]));
    }
    return x;
  }

  SUMPROD_DEVICE bool any_of_group(bool x) const {
    if constexpr (kInWarp) {
      const unsigned group = kGroup == kWarp ? kFullWarp : (1u << kGroup % kWarp) - 1u;
      return (__ballot_sync(kFullWarp, x) >> (lane_of_thread() / kGroup * kGroup) & group) != 0;
    } else {
      return __syncthreads_or(x) != 0;
    }
  }

  const HmmParts& parts_;
  const HmmRecursion& args_;
  const HmmProblem& p_;
  const Shared shared_;
  const HmmPart part_of_;
  int state_, part_;
  bool backward_, watched_ = false, redo_ = false;
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
  Real floor_ = 0;
  typename A::Scale scale_ = 0;
  unsigned last_key_ = 0;
  double tops_ = 0.0;
  typename A::ScaleSum scales_ = 0;
};

}  // namespace sumprod::gpu
