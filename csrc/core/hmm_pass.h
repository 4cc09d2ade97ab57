// The forward and backward recursions of an HMM (Rabiner 1989, section III), for one group of
// sequences, over either arithmetic and either layout.
//
// With a_t[j] the forward message (emission at t included), p_t[j] = sum_i a_{t-1}[i] A[i][j]
// the predicted message, e_t[j] = exp(emission[t][j] - m_t) and m_t the largest emission of
// step t:      a_t = p_t * e_t,     b_{t-1}[i] = sum_j A[i][j] e_t[j] b_t[j],     b_last = 1.
// At t = 0 the initial potential is added to the emission and p_0 = 1. Messages are rescaled
// every step by a power of two; the scales and the m_t are summed exactly, in double.
//
// When may linear space be trusted? Let A be max-shifted and all finite entries >= 2^-k.
//   * A without zeros and k small (kTrusted): after each step every predicted mass is within
//     2^-k of the best, so mass lost below the smallest normal number (relative 2^-126 in
//     float) contributes at most S * 2^(2k-126) to anything that follows.
//   * otherwise a sequence is kept while every possible state holds at least `floor` = 2^-88/2^-k
//     (float): then no product ever falls below 2^-88, and zeros are true zeros. A sequence that
//     breaks this is reported in `redo` and run again in Extended arithmetic.
// Extended float arithmetic asks for double when the best state drops by more than 2^14 binary
// orders in a step, because float reduces exp's argument exactly only up to there.
#pragma once

#include "core/hmm_arithmetic.h"
#include "core/hmm_tile.h"

namespace {

template <class Real>
struct Trust;
template <>
struct Trust<float> {
  static constexpr double kDense = -27.0, kSparse = -47.0;       // lowest log weight, in nats
  static constexpr double kProduct = -88.0, kAgreement = -60.0;  // in binary orders
};
template <>
struct Trust<double> {
  static constexpr double kDense = -270.0, kSparse = -415.0;
  static constexpr double kProduct = -932.0, kAgreement = -300.0;
};
constexpr double kExtendedDrop = 16384.0;
constexpr double kLn2 = 0.69314718055994530942;

constexpr double power_of_two(int k) {
  double x = 1.0;
  for (; k < 0; ++k) x *= 0.5;
  for (; k > 0; --k) x *= 2.0;
  return x;
}

// The weight matrices of each step: prepared once by the caller for a homogeneous chain, or
// here, step by step, when the transition varies in time or belongs to one sequence.
template <class Arithmetic, class External>
class Transitions {
 public:
  using Real = typename Arithmetic::Real;

  Transitions(Arena& arena, const HmmProblem& problem, const Weights<Real>* forward, const Weights<Real>* backward,
              int64_t sequence)
      : problem_(problem), forward_(forward), backward_(backward) {
    potential_ = static_cast<const External*>(problem.transition);
    if (forward != nullptr) return;
    storage_ = arena.take<Real>(Arithmetic::kParts * weight_size<typename Arithmetic::Layout>(problem.states));
    if (storage_ != nullptr) potential_ += sequence * problem.transition_batch;
  }

  // Weights of the transition from step t to t + 1; the transposed ones when `transposed`.
  const Weights<Real>& at(int64_t t, bool transposed) {
    if (forward_ != nullptr) return transposed ? *backward_ : *forward_;
    const int64_t key = problem_.transition_time == 0 ? 0 : t;
    if (key != time_ || transposed != transposed_) {
      const int64_t from = transposed ? problem_.transition_to : problem_.transition_from;
      const int64_t to = transposed ? problem_.transition_from : problem_.transition_to;
      current_ =
          prepare_weights<Arithmetic>(potential_ + key * problem_.transition_time, from, to, problem_.states, storage_);
      time_ = key;
      transposed_ = transposed;
    }
    return current_;
  }

 private:
  const HmmProblem& problem_;
  const Weights<Real>*forward_, *backward_;
  const External* potential_;
  Real* storage_ = nullptr;
  Weights<Real> current_ = {};
  int64_t time_ = -1;
  bool transposed_ = false;
};

// What both passes share: emissions in message form, and the bookkeeping of trust.
template <class Arithmetic, class External>
class Pass {
 public:
  using Layout = typename Arithmetic::Layout;
  using Real = typename Arithmetic::Real;
  using V = Vec<Real>;
  using Mask = Int<Real>;
  using Number = typename Arithmetic::Number;
  using Scale = typename Arithmetic::Scale;
  static constexpr int W = Layout::W;

  Pass(Arena& arena, const HmmProblem& problem, const Lanes<Layout>& lanes,
       Transitions<Arithmetic, External>& transitions)
      : problem_(problem),
        lanes_(lanes),
        transitions_(transitions),
        states_(problem.states),
        vectors_(Layout::vectors(problem.states)),
        cursor_(lanes),
        emission_(arena, lanes, problem.states) {
    first_ = arena.take<Real>(vectors_ * W);
    redo_segment_ = arena.take<bool>(lanes.count);
  }

  int64_t message_size() const { return message_size(problem_); }
  static int64_t message_size(const HmmProblem& problem) {
    return Arithmetic::kParts * Layout::vectors(problem.states) * W;
  }

  // The lanes at the step that is being visited.
  const Cursor<Layout>& cursor() const { return cursor_; }

  // For visitors: the results of the sequences in these lanes are beyond this arithmetic.
  void distrust(Mask lanes) { redo_ |= lanes & cursor_.active(); }

  // After a run: whether the linear (or float) result of segment k cannot be trusted.
  bool redo(int64_t k) const { return redo_segment_[k]; }

  // Float exponents saturate near the lowest finite number; logarithms read off there are wrong.
  static SUMPROD_INLINE Mask saturated(Number x) {
    if constexpr (Arithmetic::kExtended && sizeof(Real) == 4) return (x.e < Real(-1e38)) & (x.e > -kInfinity<Real>);
    return Mask{};
  }

 protected:
  void bind() {
    emission_.bind(static_cast<const External*>(problem_.emission), problem_.emission_batch, problem_.emission_time,
                   problem_.emission_state);
    redo_ = Mask{};
    for (int64_t k = 0; k < lanes_.count; ++k) redo_segment_[k] = false;
  }

  // Closes the segments of these lanes: keeps their flags and clears the lanes for what comes next.
  void close(Mask lanes) {
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (lanes[l] != 0) redo_segment_[cursor_.segment(l)] = redo_[l] != 0;
    }
    redo_ &= ~lanes;
  }

  // Emissions of step t. At the first step of a sequence the initial potential is included and the
  // largest entry of each of the two (initial_peak_, emission_peak_; 0 in other lanes) taken out
  // first, so that large offsets, which cancel in every posterior, do not cost precision.
  const Real* emission(int64_t t) {
    const Real* e = emission_.read(t);
    return lanes_.starts_at(t) ? first_emission(e) : e;
  }

  // The largest entry over states, or 0 where every entry is -inf (so that x - m stays -inf).
  V largest(const Real* e) const {
    V m = splat(-kInfinity<Real>);
    for (int64_t v = 0; v < vectors_; ++v) m = max_fast(load(e + v * W), m);
    m = Layout::max_over_states(m);
    return m == -kInfinity<Real> ? V{} : m;
  }

  // Whether lost mass must be watched for with these weights, and how small a state may get.
  bool needs_watch(const Weights<Real>& weights) {
    if (Arithmetic::kExtended || (weights.dense && weights.lowest >= Trust<Real>::kDense)) return false;
    if (weights.lowest != lowest_) {
      lowest_ = weights.lowest;
      const double lowest = lowest_ < Trust<Real>::kSparse ? Trust<Real>::kSparse : lowest_;
      floor_ = Real(power_of_two(int(Trust<Real>::kProduct - lowest / kLn2)));
    }
    return true;
  }

  // Marks lanes where some possible state fell below the floor. `positive` is the message before
  // the emission was multiplied in, `message` after.
  void watch(const Weights<Real>& weights, const Real* positive, const Real* message, const Real* e, Scale scale,
             Mask where) {
    if constexpr (!Arithmetic::kExtended) {
      Mask low = weights.lowest < Trust<Real>::kSparse ? ~Mask{} : Mask{};
      for (int64_t v = 0; v < vectors_; ++v) {
        // The next step multiplies the stored value and rescales after: both must stay above.
        const V x = load(message + v * W), scaled = x * scale.factor;
        low |= ((x < floor_) | (scaled < floor_)) & (load(positive + v * W) > Real(0)) &
               (load(e + v * W) > -kInfinity<Real>);
      }
      redo_ |= Layout::any_over_states(low) & where;
    }
  }

  void watch_extended(V exponent, Mask where) {
    if constexpr (Arithmetic::kExtended && sizeof(Real) == 4) {
      redo_ |= ((exponent < Real(-kExtendedDrop)) | (exponent > Real(kExtendedDrop))) & where;
    }
  }

  const HmmProblem& problem_;
  const Lanes<Layout>& lanes_;
  Transitions<Arithmetic, External>& transitions_;
  const int64_t states_, vectors_;
  Cursor<Layout> cursor_;
  V initial_peak_ = {}, emission_peak_ = {};
  Mask redo_ = {};      // of the sequences that the lanes are in
  bool* redo_segment_;  // of those that are done

 private:
  SUMPROD_NOINLINE const Real* first_emission(const Real* e) {
    const External* initial = static_cast<const External*>(problem_.initial);
    const Mask starts = cursor_.starts();
    for (int64_t v = 0; v < vectors_ * W; ++v) first_[v] = Layout::kMessage > 1 ? Real(0) : -kInfinity<Real>;
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (starts[l] == 0) continue;
      const External* row = initial + lanes_.sequence(cursor_.segment(l)) * problem_.initial_batch;
      for (int64_t s = 0; s < states_; ++s) first_[s * Layout::kMessage + l] = Real(row[s * problem_.initial_state]);
    }
    initial_peak_ = starts ? largest(first_) : V{};
    emission_peak_ = starts ? largest(e) : V{};
    for (int64_t v = 0; v < vectors_; ++v) {
      const V old = load(e + v * W), x = (load(first_ + v * W) - initial_peak_) + (old - emission_peak_);
      store(first_ + v * W, starts ? x : old);
    }
    return first_;
  }

  Tile<Layout, const External> emission_;
  Real* first_;
  double lowest_ = 1.0;
  Real floor_ = 0;
};

}  // namespace
