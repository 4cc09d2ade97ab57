// Gradients of all factors on one tile: backwards through the steps. A gradient is with respect to a log, so
// that with s the sum for an element of the output and g its gradient, each term adds g * term / s to all
// elements that it is a product of.
// Included by ops/contract_cpu.cpp only.
#pragma once

#include "core/contraction_tile.h"

namespace {

template <class L, Arithmetic kArithmetic>
class AdjointTile : public Tile<L, kArithmetic> {
  using Base = Tile<L, kArithmetic>;
  using Real = typename Base::Real;
  using Lane = typename Base::Lane;
  using Base::count_;
  using Base::first_;
  using Base::memory_;
  using Base::phase_;
  using Base::rows_;
  using Base::shape_;
  using Base::slots_;
  static constexpr int W = Base::W;
  static constexpr bool kScaled = Base::kScaled;

 public:
  AdjointTile(const ContractionPhase& phase, const TileMemory& memory, int64_t first, bool uses_shared,
              double* shared_grad)
      : Base(phase, memory, first, uses_shared), shared_grad_(shared_grad) {}

  // After forward() of the same tile.
  void backward() {
    Lane* bars = reinterpret_cast<Lane*>(memory_.bars);
    for (int64_t i = 0; i < shape_.kept_values; ++i) bars[i] = Lane{};
    for (int32_t r = 0; r < phase_.results; ++r) {
      if (shape_.message[phase_.result[r].message].factor < 0) load_result_grad(phase_.result[r]);
    }
    const double* reduced = phase_.partial_grad + shape_.partial_row;
    for (int32_t i = shape_.steps - 1; i >= 0; --i) {
      const ContractionStep& step = shape_.step[i];
      this->load_inputs(step);
      each_factor(step, [&](int32_t number) {
        if (slots_[number].value != nullptr) clear_bars(number);
      });
      if (step.reduces_lanes) {
        reduced -= shape_.message[step.output].slices * shape_.message[step.output].elements;
        spread(step, [&](int64_t at) { return in_use(L::all(Real(reduced[at]))); });
      } else if (step.reduces_plates) {
        const Lane* out = bar(step.output);
        spread(step, [&](int64_t at) { return out[at]; });
      } else {
        combine_backward(step);
      }
      each_factor(step, [&](int32_t number) {
        if (slots_[number].value != nullptr) write_factor_grad(number);
      });
    }
    // A factor that is a result itself.
    for (int32_t r = 0; r < phase_.results; ++r) {
      const int32_t number = phase_.result[r].message;
      if (shape_.message[number].factor < 0) continue;
      this->find(number);
      load_result_grad(phase_.result[r]);
      write_factor_grad(number);
    }
  }

 private:
  Lane* bar(int32_t number) const { return reinterpret_cast<Lane*>(memory_.bars) + shape_.message[number].value_at; }

  // Zero in lanes that repeat the last slice, so that sums over lanes may take all.
  Lane in_use(Lane x) const {
    for (int l = int(count_); l < W; ++l) L::set(x, l, Real(0));
    return x;
  }

  template <class F>
  void each_factor(const ContractionStep& step, F f) const {
    for (int32_t i = 0; i < step.inputs; ++i) {
      if (shape_.message[step.input[i].message].factor >= 0) f(step.input[i].message);
    }
  }

  void clear_bars(int32_t number) {
    const ContractionMessage& m = shape_.message[number];
    Lane* bars = bar(number);
    for (int64_t i = 0; i < m.slices * m.elements; ++i) bars[i] = Lane{};
  }

  void load_result_grad(const ContractionResult& result) {
    if (result.grad == nullptr) return;
    const ContractionMessage& m = shape_.message[result.message];
    const Slot<L>& slot = slots_[result.message];
    const Row<L> row{slot.value, slot.shared};
    Lane* out = bar(result.message);
    with_type(result.grad_view.is_double, result.grad,
              [&](const auto* data) { load_message<L>(m, result.grad_view, data, first_, count_, out); });
    // An impossible total has no gradient.
    for (int64_t i = 0; i < m.slices * m.elements; ++i) {
      out[i] = in_use(row.at(i) == Base::kImpossible ? Lane{} : out[i]);
    }
  }

  // Adds to the gradient of an entry of an input.
  SUMPROD_INLINE void add_at(int32_t message, int64_t at, Lane share) {
    if (W == 1 || slots_[message].value != nullptr) {
      bar(message)[at] += share;
    } else if (double* grad = shared_grad_of(message)) {
      double sum = 0;
      for (int l = 0; l < W; ++l) sum += double(L::get(share, l));
      grad[at] += sum;
    }
  }

  // The same for the entry that belongs to one slice of the output.
  SUMPROD_INLINE void add(const ContractionInput& input, int64_t slice, int64_t index, Lane share) {
    add_at(input.message, input.slice_at[slice] * shape_.message[input.message].elements + index, share);
  }

  // Null when the gradient is not wanted.
  double* shared_grad_of(int32_t message) const {
    const ContractionShared& shared = phase_.shared[phase_.factor[shape_.message[message].factor].shared];
    return shared.accumulates ? shared_grad_ + shared.value_at : nullptr;
  }

  void combine_backward(const ContractionStep& step) {
    const ContractionMessage& m = shape_.message[step.output];
    for (int64_t s = 0; s < m.slices; ++s) {
      this->find_rows(step, s);
      if constexpr (kScaled) {
        scaled_shares(step, s, m.elements);
      } else {
        log_shares(step, s, m.elements);
      }
    }
  }

  void log_shares(const ContractionStep& step, int64_t s, int64_t elements) {
    const Lane* total = slots_[step.output].value + s * elements;
    const Lane* grad = bar(step.output) + s * elements;
    for (int64_t e = 0; e < elements; ++e) {
      for (int64_t t = 0; t < step.terms; ++t) {
        const Lane below = this->product_of(step, e, t) - total[e];
        const Lane share = grad[e] * L::exp(total[e] == -kInfinity<Real> ? L::all(-kInfinity<Real>) : below);
        for (int32_t i = 0; i < step.inputs; ++i) {
          add(step.input[i], s, step.input[i].element_at[e] + step.input[i].term_at[t], share);
        }
      }
    }
  }

  void scaled_shares(const ContractionStep& step, int64_t s, int64_t elements) {
    const Slot<L>& out = slots_[step.output];
    const Lane* value = out.value + s * elements;
    const Lane* grad = bar(step.output) + s * elements;
    Lane* weight = reinterpret_cast<Lane*>(memory_.element_row);
    for (int64_t e = 0; e < elements; ++e) {
      weight[e] = value[e] == Real(0) ? Lane{} : grad[e] * out.norm[s] / value[e];
    }
    this->times_elements(step, elements, weight);
    const Lane* row = this->term_row(step);
    Lane* term_grad = reinterpret_cast<Lane*>(memory_.term_grad);
    for (int64_t t = 0; t < step.terms; ++t) term_grad[t] = Lane{};
    if (step.matrix >= 0) {
      matrix_shares(step, s, row, weight, elements, term_grad);
    } else if (Base::has_role(step, ContractionRole::both)) {
      product_shares(step, s, row, weight, elements, term_grad);
    } else {
      Lane sum = {};
      for (int64_t e = 0; e < elements; ++e) sum += weight[e];
      for (int64_t t = 0; t < step.terms; ++t) term_grad[t] = row[t] * sum;
    }
    for (int32_t i = 0; i < step.inputs; ++i) {
      const ContractionInput& input = step.input[i];
      if (input.role == ContractionRole::both) continue;
      if (input.role == ContractionRole::terms) {
        for (int64_t t = 0; t < step.terms; ++t) add(input, s, input.term_at[t], term_grad[t]);
      } else {
        for (int64_t e = 0; e < elements; ++e) {
          add(input, s, input.element_at[e], value[e] == Real(0) ? Lane{} : grad[e]);
        }
      }
    }
  }

  void matrix_shares(const ContractionStep& step, int64_t s, const Lane* row, const Lane* weight, int64_t elements,
                     Lane* term_grad) {
    const ContractionInput& input = step.input[step.matrix];
    const Row<L>& matrix = rows_[step.matrix];
    const int64_t at = input.slice_at[s] * shape_.message[input.message].elements;
    if constexpr (W > 1) {
      if (matrix.value == nullptr) {
        shared_row_adjoint<Real>(row, matrix.shared, weight, step.terms, elements, term_grad);
        if (double* grad = shared_grad_of(input.message)) {
          shared_matrix_adjoint<Real>(row, matrix.shared, weight, step.terms, elements,
                                      reinterpret_cast<Lane*>(memory_.turned), grad + at);
        }
        return;
      }
    }
    matrix_adjoint<Real>(row, matrix.value, weight, step.terms, elements, bar(input.message) + at, term_grad);
  }

  void product_shares(const ContractionStep& step, int64_t s, const Lane* row, const Lane* weight, int64_t elements,
                      Lane* term_grad) {
    for (int64_t e = 0; e < elements; ++e) {
      for (int64_t t = 0; t < step.terms; ++t) {
        const Lane share = row[t] * this->product_of_both(step, e, t) * weight[e];
        term_grad[t] += share;
        for (int32_t i = 0; i < step.inputs; ++i) {
          const ContractionInput& input = step.input[i];
          if (input.role != ContractionRole::both) continue;
          add(input, s, input.element_at[e] + input.term_at[t], share);
        }
      }
    }
  }

  // Each slice of what was reduced has the gradient of the output.
  template <class F>
  void spread(const ContractionStep& step, F grad) {
    const ContractionMessage& m = shape_.message[step.output];
    const ContractionInput& input = step.input[0];
    for (int64_t s = 0; s < m.slices; ++s) {
      for (int64_t t = 0; t < step.terms; ++t) {
        const int64_t at = (input.slice_at[s] + input.term_at[t]) * m.elements;
        for (int64_t e = 0; e < m.elements; ++e) add_at(input.message, at + e, grad(s * m.elements + e));
      }
    }
  }

  void write_factor_grad(int32_t number) {
    const ContractionMessage& m = shape_.message[number];
    const ContractionFactor& factor = phase_.factor[m.factor];
    const Lane* bars = bar(number);
    if (factor.shared >= 0 && phase_.shared[factor.shared].accumulates) {
      double* grad = shared_grad_of(number);
      for (int64_t i = 0; i < m.slices * m.elements; ++i) {
        for (int l = 0; l < count_; ++l) grad[i] += double(L::get(bars[i], l));
      }
    } else if (factor.grad != nullptr) {
      with_type(factor.grad_view.is_double, factor.grad,
                [&](auto* data) { store_message<L>(m, factor.grad_view, factor.adds, bars, data, first_, count_); });
    }
  }

  double* const shared_grad_;
};

}  // namespace
