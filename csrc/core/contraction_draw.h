// Values of all variables, drawn together or the most probable ones: backwards through the steps, each
// variable from its distribution given what the step's output has been set to.
// Included by ops/contract_cpu.cpp only.
#pragma once

#include "core/contraction_tile.h"

namespace {

using sumprod::ContractionChoice;
using sumprod::ContractionDraw;

template <class L, Arithmetic kArithmetic>
class DrawingTile : public Tile<L, kArithmetic> {
  using Base = Tile<L, kArithmetic>;
  using Base::count_;
  using Base::first_;
  using Base::phase_;
  using Base::rows_;
  using Base::shape_;
  static constexpr bool kScaled = Base::kScaled;

 public:
  using Base::Base;

  // After forward() of the same tile.
  void draw() {
    for (int32_t i = shape_.steps - 1; i >= 0; --i) {
      const ContractionStep& step = shape_.step[i];
      const ContractionDraw& draw = phase_.draw[i];
      if (draw.drawn == 0) continue;
      this->load_inputs(step);
      const int64_t slices = shape_.message[step.output].slices;
      for (int64_t s = 0; s < slices; ++s) {
        this->find_rows(step, s);
        for (int l = 0; l < count_; ++l) draw_one(step, draw, s, l);
      }
    }
  }

 private:
  void draw_one(const ContractionStep& step, const ContractionDraw& draw, int64_t s, int l) {
    const int64_t lane = first_ + l;
    int64_t element = 0;
    for (int32_t v = 0; v < draw.given; ++v) {
      const ContractionChoice& choice = draw.given_choice[v];
      element += choice.stride * choice.data[choice.slice[s] + lane * choice.lane_stride];
    }
    const int64_t term =
        draw.uniform == nullptr
            ? largest_term(step, element, l)
            : term_at_quantile(step, element, l, draw.uniform[draw.uniform_slice[s] + lane * draw.uniform_lane_stride]);
    for (int32_t v = 0; v < draw.drawn; ++v) {
      const ContractionChoice& choice = draw.drawn_choice[v];
      choice.data[choice.slice[s] + lane * choice.lane_stride] = term / choice.stride % choice.size;
    }
  }

  double entry_of(const ContractionStep& step, int32_t i, int64_t element, int64_t term, int l) const {
    const ContractionInput& input = step.input[i];
    const int64_t at = input.element_at[element] + input.term_at[term];
    return double(rows_[i].value != nullptr ? Base::Lanes::get(rows_[i].value[at], l) : rows_[i].shared[at]);
  }

  double weight_of(const ContractionStep& step, int64_t element, int l, int64_t term) const {
    double weight = entry_of(step, 0, element, term, l);
    for (int32_t i = 1; i < step.inputs; ++i) {
      const double x = entry_of(step, i, element, term, l);
      weight = kScaled ? weight * x : weight + x;
    }
    return weight;
  }

  // The lowest of the largest.
  int64_t largest_term(const ContractionStep& step, int64_t element, int l) const {
    int64_t best = 0;
    double most = weight_of(step, element, l, 0);
    for (int64_t t = 1; t < step.terms; ++t) {
      const double weight = weight_of(step, element, l, t);
      if (weight > most) {
        most = weight;
        best = t;
      }
    }
    return best;
  }

  // The first term at which the running sum of weights exceeds that share of their total.
  int64_t term_at_quantile(const ContractionStep& step, int64_t element, int l, double share) const {
    double top = 0;
    if constexpr (!kScaled) {
      top = weight_of(step, element, l, largest_term(step, element, l));
      if (!(top > -kInfinity<double>)) return 0;
    }
    const auto weight = [&](int64_t t) {
      const double x = weight_of(step, element, l, t);
      return kScaled ? x : exp_nonpositive<double>(splat(x - top))[0];
    };
    double total = 0;
    for (int64_t t = 0; t < step.terms; ++t) total += weight(t);
    const double target = share * total;
    double sum = 0;
    int64_t last = 0;
    for (int64_t t = 0; t < step.terms; ++t) {
      const double w = weight(t);
      sum += w;
      if (w > 0) last = t;  // rounding must not end on an impossible term
      if (sum > target && w > 0) return t;
    }
    return last;
  }
};

}  // namespace
