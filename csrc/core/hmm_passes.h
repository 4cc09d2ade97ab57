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

enum class Keep { nothing, predicted, forward };

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
        emission_(arena, lanes, problem.states) {
    first_ = arena.take<Real>(vectors_ * W);
  }

  int64_t message_size() const { return message_size(problem_); }
  static int64_t message_size(const HmmProblem& problem) {
    return Arithmetic::kParts * Layout::vectors(problem.states) * W;
  }

  // Lanes whose sequence has a step t.
  Mask active(int64_t t) const {
    if (t < lanes_.shortest) return ~Mask{};
    Mask mask = {};
    for (int l = 0; l < W; ++l) mask[l] = t < lanes_.length[l < Layout::kLanes ? l : 0] ? -1 : 0;
    return mask;
  }

  // For visitors: the results of these lanes are beyond this arithmetic.
  void distrust(Mask lanes) { redo_ |= lanes; }

  // Lanes whose sequence the linear (or float) result cannot be trusted for.
  bool redo(int lane) const { return redo_[lane] != 0; }
  bool all_redo() const {
    for (int l = 0; l < lanes_.count; ++l) {
      if (redo_[l] == 0) return false;
    }
    return true;
  }

 protected:
  void bind() {
    emission_.bind(static_cast<const External*>(problem_.emission), problem_.emission_batch, problem_.emission_time,
                   problem_.emission_state);
    redo_ = Mask{};
  }

  // Emissions of step t. At t = 0 the initial potential is included and the largest entry of each
  // of the two (initial_peak_, emission_peak_) taken out first, so that large offsets, which cancel
  // in every posterior, do not cost precision.
  const Real* emission(int64_t t) {
    const Real* e = emission_.read(t);
    if (t > 0) return e;
    for (int64_t v = 0; v < vectors_ * W; ++v) first_[v] = -kInfinity<Real>;
    const External* initial = static_cast<const External*>(problem_.initial);
    for (int l = 0; l < Layout::kLanes; ++l) {
      const External* row = initial + lanes_.sequence[l] * problem_.initial_batch;
      for (int64_t s = 0; s < states_; ++s) first_[s * Layout::kMessage + l] = Real(row[s * problem_.initial_state]);
    }
    initial_peak_ = largest(first_);
    emission_peak_ = largest(e);
    for (int64_t v = 0; v < vectors_; ++v) {
      const V x = (load(first_ + v * W) - initial_peak_) + (load(e + v * W) - emission_peak_);
      store(first_ + v * W, x);
    }
    return first_;
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

 public:
  // Float exponents saturate near the lowest finite number; logarithms read off there are wrong.
  static SUMPROD_INLINE Mask saturated(Number x) {
    if constexpr (Arithmetic::kExtended && sizeof(Real) == 4) return (x.e < Real(-1e38)) & (x.e > -kInfinity<Real>);
    return Mask{};
  }

 protected:
  void watch_extended(V exponent, Mask where) {
    if constexpr (Arithmetic::kExtended && sizeof(Real) == 4) {
      redo_ |= ((exponent < Real(-kExtendedDrop)) | (exponent > Real(kExtendedDrop))) & where;
    }
  }

  const HmmProblem& problem_;
  const Lanes<Layout>& lanes_;
  Transitions<Arithmetic, External>& transitions_;
  const int64_t states_, vectors_;
  Tile<Layout, const External> emission_;
  Real* first_;
  V initial_peak_ = {}, emission_peak_ = {};
  Mask redo_ = {};
  double lowest_ = 1.0;
  Real floor_ = 0;
};

template <class Arithmetic, class External>
class ForwardPass : public Pass<Arithmetic, External> {
 public:
  using Base = Pass<Arithmetic, External>;
  using typename Base::Layout;
  using typename Base::Mask;
  using typename Base::Number;
  using typename Base::Real;
  using typename Base::Scale;
  using typename Base::V;
  static constexpr int W = Base::W;

  ForwardPass(Arena& arena, const HmmProblem& problem, const Lanes<Layout>& lanes,
              Transitions<Arithmetic, External>& transitions)
      : Base(arena, problem, lanes, transitions) {
    message_[0] = arena.take<Real>(this->message_size());
    message_[1] = arena.take<Real>(this->message_size());
    predicted_ = arena.take<Real>(this->message_size());
  }

  // Runs all steps. `kept`, when not null, receives one message per step (predicted or forward).
  // `visit(t, emission, m, predicted, forward)` is called after each step. Returns false when
  // every lane has asked to be redone; then log_normalizer() means nothing.
  template <class Visit>
  bool run(Keep keep, Real* kept, Visit visit) {
    this->bind();
    for (int64_t t = 0; t < this->lanes_.longest; ++t) {
      Real* p = keep == Keep::predicted ? kept + t * this->message_size() : predicted_;
      Real* a = keep == Keep::forward ? kept + t * this->message_size() : message_[t % 2];
      const Real* e = this->emission(t);
      const V m = this->largest(e);
      step(t, e, m, p, a);
      visit(t, e, m, p, a);
      previous_ = a;
      if (t + 1 >= this->lanes_.shortest) finish_lanes(t, a);
      if (t % 64 == 63 && this->all_redo()) return false;
    }
    return !this->all_redo();
  }

  double log_normalizer(int lane) const { return log_normalizer_[lane]; }
  // False when the total weight is zero or NaN.
  bool possible(int lane) const {
    const double z = log_normalizer_[lane];
    return z - z == 0.0;
  }

 private:
  void step(int64_t t, const Real* e, V m, Real* p, Real* a) {
    const int64_t n = this->vectors_;
    const Scale scale = scale_;
    V peak = Arithmetic::peak_start();
    auto use = [&](int64_t v, Number x) SUMPROD_INLINE_LAMBDA {
      x = Arithmetic::rescale(x, scale);
      Arithmetic::put(p, v, n, x);
      x = Arithmetic::multiply(x, Arithmetic::exp(load(e + v * W) - m));
      Arithmetic::put(a, v, n, x);
      peak = Arithmetic::peak(x, peak);
    };
    const Weights<Real>* incoming = nullptr;
    if (t == 0) {
      scale_ = Arithmetic::unit_scale();
      maxima_.add(this->initial_peak_);
      maxima_.add(this->emission_peak_);
      for (int64_t v = 0; v < n; ++v) {
        const Number one = Arithmetic::one();
        Arithmetic::put(p, v, n, one);
        const Number x = Arithmetic::exp(load(e + v * W) - m);
        Arithmetic::put(a, v, n, x);
        peak = Arithmetic::peak(x, peak);
      }
    } else {
      incoming = &this->transitions_.at(t - 1, false);
      shift_ += incoming->shift;
      Arithmetic::propagate(*incoming, previous_, this->states_, use);
    }
    peak = Layout::max_over_states(peak);
    scale_ = Arithmetic::scale_from(peak);
    maxima_.add(m);
    exponents_.add(scale_.exponent);
    this->watch_extended(scale_.exponent, this->active(t));
    // A sequence is watched with the weights of its next step, or at its end with those of its last
    // one, so that what is watched does not depend on the group around it.
    const Mask continues = this->active(t + 1);
    if (incoming != nullptr && t + 1 >= this->lanes_.shortest && this->needs_watch(*incoming)) {
      this->watch(*incoming, p, a, e, scale_, this->active(t) & ~continues);
    }
    if (t + 1 == this->lanes_.longest) return;
    const Weights<Real>& next = this->transitions_.at(t, false);
    if (this->needs_watch(next)) this->watch(next, p, a, e, scale_, continues);
  }

  // Reads off the totals of the lanes whose last step is t.
  void finish_lanes(int64_t t, const Real* a) {
    bool due = false;
    for (int l = 0; l < this->lanes_.count; ++l) due = due || this->lanes_.length[l] == t + 1;
    if (!due) return;
    const Number total = Arithmetic::rescale(Arithmetic::sum(a, this->states_, this->vectors_), scale_);
    const V logs = Arithmetic::log(total);
    for (int l = 0; l < this->lanes_.count; ++l) {
      if (this->lanes_.length[l] != t + 1) continue;
      log_normalizer_[l] = maxima_.lane(l) + exponents_.lane(l) * kLn2 + double(logs[l]) + shift_;
    }
  }

  Real *message_[2], *predicted_;
  const Real* previous_ = nullptr;
  Scale scale_ = Arithmetic::unit_scale();
  DoubleSum<Real> maxima_, exponents_;
  double shift_ = 0.0;
  double log_normalizer_[Layout::kLanes] = {};
};

// Runs the backward recursion over kept *predicted* messages. At each step, from the last to the
// first, calls visit(Step); the caller combines the messages into what it returns.
template <class Arithmetic, class External>
class BackwardPass : public Pass<Arithmetic, External> {
 public:
  using Base = Pass<Arithmetic, External>;
  using typename Base::Layout;
  using typename Base::Mask;
  using typename Base::Number;
  using typename Base::Real;
  using typename Base::Scale;
  using typename Base::V;
  static constexpr int W = Base::W;

  struct Step {
    int64_t t;
    const Real* emission;   // with the initial potential at t = 0
    V m;                    // its largest entry
    const Real* predicted;  // p_t
    const Real* forward;    // a_t = p_t * exp(emission - m)
    const Real* backward;   // b_t
    Number total;           // sum over states of a_t * b_t
    const Real* next;       // e_{t+1} * b_{t+1}, to be multiplied by next_scale
    Scale next_scale;
    const Real* next_emission;  // valid where continues
    V next_m;
    const Real* next_backward;
    Mask continues;                // lanes with t + 1 < length
    bool watched;                  // linear space without the dense guarantee
    const Weights<Real>* weights;  // transposed weights of the step t -> t + 1 (null at the end)
  };

  BackwardPass(Arena& arena, const HmmProblem& problem, const Lanes<Layout>& lanes,
               Transitions<Arithmetic, External>& transitions)
      : Base(arena, problem, lanes, transitions) {
    for (int i = 0; i < 2; ++i) {
      backward_[i] = arena.take<Real>(this->message_size());
      next_[i] = arena.take<Real>(this->message_size());
      next_emission_[i] = arena.take<Real>(this->vectors_ * W);
    }
    forward_ = arena.take<Real>(this->message_size());
  }

  template <class Visit>
  void run(const Real* predicted, Visit visit) {
    this->bind();
    const int64_t n = this->vectors_;
    Scale scale = Arithmetic::unit_scale();
    V next_m = {};
    const Weights<Real>* weights = nullptr;
    for (int64_t t = this->lanes_.longest - 1; t >= 0; --t) {
      Real *b = backward_[t % 2], *w = next_[t % 2];
      const Mask continues = this->active(t + 1);
      receive(t, continues, scale, b, weights);
      const Real* e = this->emission(t);
      const V m = this->largest(e);
      const Real* p = predicted + t * this->message_size();
      V peak = Arithmetic::peak_start();
      for (int64_t v = 0; v < n; ++v) {
        const Number exp_e = Arithmetic::exp(load(e + v * W) - m), b_v = Arithmetic::get(b, v, n);
        Arithmetic::put(forward_, v, n, Arithmetic::multiply(Arithmetic::get(p, v, n), exp_e));
        const Number x = Arithmetic::multiply(exp_e, b_v);
        Arithmetic::put(w, v, n, x);
        peak = Arithmetic::peak(x, peak);
      }
      const Number total = Arithmetic::dot(forward_, b, this->states_, n);
      const bool watched = weights != nullptr && this->needs_watch(*weights);
      check_total(total, this->active(t), continues, watched);
      visit(Step{t, e, m, p, forward_, b, total, next_[(t + 1) % 2], scale, next_emission_[(t + 1) % 2], next_m,
                 backward_[(t + 1) % 2], continues, watched, weights});
      scale = Arithmetic::scale_from(Layout::max_over_states(peak));
      this->watch_extended(scale.exponent, this->active(t));
      if (t > 0) {
        const Weights<Real>& next = this->transitions_.at(t - 1, true);
        if (this->needs_watch(next)) this->watch(next, b, w, e, scale, this->active(t));
      }
      for (int64_t v = 0; v < n; ++v) store(next_emission_[t % 2] + v * W, load(e + v * W));
      next_m = m;
      if (t % 64 == 0 && this->all_redo()) return;
    }
  }

 private:
  // b_t from w_{t+1} where the sequence goes on, 1 where it ends.
  void receive(int64_t t, Mask continues, Scale scale, Real* b, const Weights<Real>*& weights) {
    const int64_t n = this->vectors_;
    if (t + 1 >= this->lanes_.longest) {
      for (int64_t v = 0; v < n; ++v) Arithmetic::put(b, v, n, Arithmetic::one());
      return;
    }
    weights = &this->transitions_.at(t, true);
    Arithmetic::propagate(*weights, next_[(t + 1) % 2], this->states_, [&](int64_t v, Number x) SUMPROD_INLINE_LAMBDA {
      x = Arithmetic::rescale(x, scale);
      Arithmetic::put(b, v, n, Arithmetic::select(continues, x, Arithmetic::one()));
    });
  }

  // Forward and backward messages that barely overlap hide what was lost in either.
  void check_total(Number total, Mask here, Mask continues, bool watched) {
    if constexpr (Arithmetic::kExtended) {
      this->watch_extended(total.e, here & (total.f > Real(0)));
    } else if (watched) {
      constexpr Real least = Real(power_of_two(int(Trust<Real>::kAgreement)));
      this->redo_ |= (total.f < least) & here & continues;
    }
  }

  Real *backward_[2], *next_[2], *next_emission_[2], *forward_;
};

}  // namespace
