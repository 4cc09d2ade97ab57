// The two passes over a group: forward over all steps, and backward over what the forward pass kept.
#pragma once

#include "core/hmm_pass.h"

namespace {

enum class Keep { nothing, predicted, forward };

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
    log_normalizer_ = arena.take<double>(lanes.count);
  }

  // Runs all steps. `kept`, when not null, receives one message per step (predicted or forward).
  // `visit(t, emission, m, predicted, forward)` is called after each step. Returns false when
  // every sequence has asked to be redone; then log_normalizer() means nothing.
  template <class Visit>
  bool run(Keep keep, Real* kept, Visit visit) {
    this->bind();
    for (int64_t t = 0; t < this->lanes_.steps; ++t) {
      this->cursor_.move(t);
      if (t > 0 && this->lanes_.starts_at(t)) restart();
      Real* p = keep == Keep::predicted ? kept + t * this->message_size() : predicted_;
      Real* a = keep == Keep::forward ? kept + t * this->message_size() : message_[t % 2];
      const Real* e = this->emission(t);
      const V m = this->largest(e);
      step(t, e, m, p, a);
      visit(t, e, m, p, a);
      previous_ = a;
      if (this->lanes_.ends_at(t)) finish(a);
      if (t % 64 == 63 && hopeless()) {
        this->close(this->cursor_.active());
        return false;
      }
    }
    for (int64_t k = 0; k < this->lanes_.count; ++k) {
      if (!this->redo(k)) return true;
    }
    return false;
  }

  double log_normalizer(int64_t k) const { return log_normalizer_[k]; }
  // False when the total weight is zero or NaN.
  bool possible(int64_t k) const {
    const double z = log_normalizer_[k];
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
    if (t > 0) {
      incoming = &this->transitions_.at(t - 1, false);
      shift_ += incoming->shift;
      Arithmetic::propagate(*incoming, previous_, this->states_, use);
    }
    if (this->lanes_.starts_at(t)) {
      start_lanes(t == 0 ? ~Mask{} : this->cursor_.starts(), e, m, p, a);
      peak = Arithmetic::peak_start();
      for (int64_t v = 0; v < n; ++v) peak = Arithmetic::peak(Arithmetic::get(a, v, n), peak);
      maxima_.add(this->initial_peak_);
      maxima_.add(this->emission_peak_);
    }
    peak = Layout::max_over_states(peak);
    scale_ = Arithmetic::scale_from(peak);
    maxima_.add(m);
    exponents_.add(scale_.exponent);
    this->watch_extended(scale_.exponent, this->cursor_.active());
    // A sequence is watched with the weights of its next step, or at its end with those of its last
    // one, so that what is watched does not depend on the group around it.
    if (incoming != nullptr && this->lanes_.ends_at(t) && this->needs_watch(*incoming)) {
      this->watch(*incoming, p, a, e, scale_, this->cursor_.ends() & ~this->cursor_.starts());
    }
    if (t + 1 == this->lanes_.steps) return;
    const Weights<Real>& next = this->transitions_.at(t, false);
    if (this->needs_watch(next)) this->watch(next, p, a, e, scale_, this->cursor_.continues());
  }

  // The first messages of the sequences that start in these lanes.
  void start_lanes(Mask lanes, const Real* e, V m, Real* p, Real* a) {
    const int64_t n = this->vectors_;
    for (int64_t v = 0; v < n; ++v) {
      const Number one = Arithmetic::one(), x = Arithmetic::exp(load(e + v * W) - m);
      Arithmetic::put(p, v, n, Arithmetic::select(lanes, one, Arithmetic::get(p, v, n)));
      Arithmetic::put(a, v, n, Arithmetic::select(lanes, x, Arithmetic::get(a, v, n)));
    }
  }

  // Forgets the sequence before in the lanes where another starts.
  void restart() {
    const Mask starts = this->cursor_.starts();
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (starts[l] == 0) continue;
      maxima_.clear(l);
      exponents_.clear(l);
    }
  }

  // Reads off the totals of the sequences that end here.
  void finish(const Real* a) {
    const Number total = Arithmetic::rescale(Arithmetic::sum(a, this->states_, this->vectors_), scale_);
    const V logs = Arithmetic::log(total);
    const Mask ends = this->cursor_.ends();
    for (int l = 0; l < Layout::kLanes; ++l) {
      if (ends[l] == 0) continue;
      const int64_t k = this->cursor_.segment(l);
      log_normalizer_[k] = add_shifts(k, multiply_add(exponents_.lane(l), kLn2, maxima_.lane(l)) + double(logs[l]));
    }
    this->close(ends);
  }

  // Puts back what was taken out of the transitions of a sequence. Lanes are refilled only where all
  // transitions are the same, so that otherwise every sequence starts with its lane.
  double add_shifts(int64_t k, double total) const {
    const int64_t pairs = this->lanes_.length(k) - 1;
    if (pairs == 0) return total;
    if (this->problem_.transition_time != 0) return total + shift_;
    return multiply_add(double(pairs), this->transitions_.at(0, false).shift, total);
  }

  // Whether every sequence of the group has been found to need a redo.
  bool hopeless() const {
    for (int l = 0; l < Layout::kLanes; ++l) {
      const int64_t first = this->lanes_.first(l), last = this->lanes_.first(l + 1) - 1;
      if (last < first) continue;
      const int64_t now = this->cursor_.segment(l);
      if (now != last || (this->cursor_.active()[l] != 0 ? this->redo_[l] == 0 : !this->redo(now))) return false;
      for (int64_t k = first; k < last; ++k) {
        if (!this->redo(k)) return false;
      }
    }
    return true;
  }

  Real *message_[2], *predicted_;
  double* log_normalizer_;
  const Real* previous_ = nullptr;
  Scale scale_ = {};
  DoubleSum<Real> maxima_, exponents_;
  double shift_ = 0.0;
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
    Scale scale = {};
    V next_m = {};
    const Weights<Real>* weights = nullptr;
    for (int64_t t = this->lanes_.steps - 1; t >= 0; --t) {
      this->cursor_.move(t);
      Real *b = backward_[t % 2], *w = next_[t % 2];
      const Mask active = this->cursor_.active(), continues = this->cursor_.continues();
      receive(t, scale, b, weights);
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
      check_total(total, active, continues, watched);
      visit(Step{t, e, m, p, forward_, b, total, next_[(t + 1) % 2], scale, next_emission_[(t + 1) % 2], next_m,
                 backward_[(t + 1) % 2], continues, watched, weights});
      scale = Arithmetic::scale_from(Layout::max_over_states(peak));
      this->watch_extended(scale.exponent, active);
      if (t > 0) {
        const Weights<Real>& next = this->transitions_.at(t - 1, true);
        if (this->needs_watch(next)) this->watch(next, b, w, e, scale, active & ~this->cursor_.starts());
      }
      if (this->lanes_.starts_at(t)) this->close(this->cursor_.starts());
      for (int64_t v = 0; v < n; ++v) store(next_emission_[t % 2] + v * W, load(e + v * W));
      next_m = m;
      if (t % 64 == 0 && hopeless()) {
        this->close(active);
        return;
      }
    }
  }

 private:
  // b_t from w_{t+1} where the sequence goes on, 1 where it ends.
  void receive(int64_t t, Scale scale, Real* b, const Weights<Real>*& weights) {
    const int64_t n = this->vectors_;
    if (t + 1 >= this->lanes_.steps) {
      for (int64_t v = 0; v < n; ++v) Arithmetic::put(b, v, n, Arithmetic::one());
      return;
    }
    weights = &this->transitions_.at(t, true);
    Arithmetic::propagate(*weights, next_[(t + 1) % 2], this->states_, [&](int64_t v, Number x) SUMPROD_INLINE_LAMBDA {
      Arithmetic::put(b, v, n, Arithmetic::rescale(x, scale));
    });
    if (!this->lanes_.ends_at(t)) return;
    const Mask ends = this->cursor_.ends();
    for (int64_t v = 0; v < n; ++v) {
      Arithmetic::put(b, v, n, Arithmetic::select(ends, Arithmetic::one(), Arithmetic::get(b, v, n)));
    }
  }

  // Whether every sequence of the group has been found to need a redo.
  bool hopeless() const {
    const Mask active = this->cursor_.active();
    for (int l = 0; l < Layout::kLanes; ++l) {
      const int64_t first = this->lanes_.first(l), last = this->lanes_.first(l + 1) - 1;
      if (last < first) continue;
      const int64_t now = this->cursor_.segment(l);
      if (now != first || (active[l] != 0 && this->redo_[l] == 0)) return false;
      for (int64_t k = active[l] != 0 ? first + 1 : first; k <= last; ++k) {
        if (!this->redo(k)) return false;
      }
    }
    return true;
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
