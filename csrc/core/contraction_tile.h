// One tile of a contraction: all steps of a phase for some lanes, in one of three arithmetics.
//
//   scaled    the default: a message is the exponential of its logs over the largest of its slice, with
//             the scale, in double, beside it. A step is multiply-adds. Exact to rounding as long as no
//             product can underflow, which is known from the smallest entries of the inputs. In float for
//             float32 factors; a tile for which that is too narrow is run again in double.
//   log_sum   where double is too narrow: logs, and two passes for each sum.
//   max_plus  logs, and the largest term instead of the sum.
//
// Included by ops/contract_cpu.cpp only.
#pragma once

#include "core/contraction_products.h"

namespace {

using sumprod::ContractionFactor;
using sumprod::ContractionInput;
using sumprod::ContractionPhase;
using sumprod::ContractionResult;
using sumprod::ContractionRole;
using sumprod::ContractionShape;
using sumprod::ContractionShared;
using sumprod::ContractionStep;

constexpr double kLn2 = 0.69314718055994530942;

enum class Arithmetic { scaled, log_sum, max_plus };

// The lanes from `first` on of the lane plate, through all steps of a phase. `uses_shared`: this is the
// arithmetic that shared factors were prepared for.
template <class L, Arithmetic kArithmetic>
class Tile {
 public:
  using Lanes = L;
  using Real = typename L::Real;
  using Lane = typename L::Lane;
  static constexpr int W = L::kWidth;
  static constexpr bool kScaled = kArithmetic == Arithmetic::scaled;
  static constexpr Real kImpossible = kScaled ? Real(0) : -kInfinity<Real>;

  Tile(const ContractionPhase& phase, const TileMemory& memory, int64_t first, bool uses_shared)
      : phase_(phase),
        shape_(phase.shape),
        memory_(memory),
        slots_(reinterpret_cast<Slot<L>*>(memory.slots)),
        rows_(reinterpret_cast<Row<L>*>(memory.rows)),
        first_(first),
        count_(shape_.lanes - first < W ? shape_.lanes - first : W),
        uses_shared_(uses_shared && W > 1) {}

  // Runs all steps; adds what is reduced across lanes to `partial`. False, and nothing added: a product
  // might underflow.
  bool forward(double* partial) {
    for (int32_t i = 0; i < shape_.steps; ++i) {
      const ContractionStep& step = shape_.step[i];
      const bool exact = representable(load_inputs(step));
      if (!exact && (step.reduces_plates || step.inputs > kFewInputs || step.terms > kFewTerms)) return false;
      if (kScaled && step.inputs > kMostInputs<Real>) return false;
      if (step.reduces_lanes) continue;
      if (step.reduces_plates) {
        reduce_plates(step);
      } else if (!combine(step, exact)) {
        return false;
      }
    }
    // Smaller entries than that are not inputs of anything, but they are answers.
    for (int32_t r = 0; r < phase_.results; ++r) {
      if (!representable(find(phase_.result[r].message).lowest)) return false;
    }
    for (int32_t i = 0; i < shape_.steps; ++i) {
      const ContractionStep& step = shape_.step[i];
      if (step.reduces_lanes) partial = reduce_lanes(step, partial);
    }
    return true;
  }

  void write_results() {
    for (int32_t r = 0; r < phase_.results; ++r) {
      const ContractionResult& result = phase_.result[r];
      if (result.data == nullptr) continue;
      const ContractionMessage& m = shape_.message[result.message];
      const Slot<L> slot = find(result.message);
      with_type(result.view.is_double, result.data, [&](auto* data) {
        using Stored = typename TypeOfPointee<decltype(data)>::Type;
        data += first_ * result.view.lane_stride;
        for (int64_t s = 0; s < m.slices; ++s) {
          for (int64_t e = 0; e < m.elements; ++e) {
            const Wide<L> log = log_of(slot, m, s, e);
            Stored* p = data + result.view.slice[s] + result.view.element[e];
            for (int l = 0; l < count_; ++l) p[l * result.view.lane_stride] = Stored(log.lane[l]);
          }
        }
      });
    }
  }

 protected:
  static bool representable(int64_t lowest) { return !kScaled || lowest >= kLowestExponent<Real>; }

  // ---- inputs

  Slot<L> place(int32_t number) const {
    const ContractionMessage& m = shape_.message[number];
    return {reinterpret_cast<Lane*>(memory_.values) + m.value_at, nullptr, memory_.scales + m.slice_at * W,
            reinterpret_cast<Lane*>(memory_.norms) + m.slice_at, 0};
  }

  // A message's slot; a factor's entries are read first.
  const Slot<L>& find(int32_t number) {
    const ContractionMessage& m = shape_.message[number];
    if (m.factor < 0) return slots_[number];
    const ContractionFactor& factor = phase_.factor[m.factor];
    if (uses_shared_ && factor.shared >= 0) {
      const ContractionShared& shared = phase_.shared[factor.shared];
      return slots_[number] = {nullptr, static_cast<const Real*>(phase_.shared_value) + shared.value_at,
                               phase_.shared_scale + shared.slice_at, nullptr, phase_.shared_lowest[factor.shared]};
    }
    Slot<L>& slot = slots_[number] = place(number);
    with_type(factor.view.is_double, factor.data,
              [&](const auto* data) { load_message<L>(m, factor.view, data, first_, count_, slot.value); });
    if constexpr (kScaled) slot.lowest = scale_logs<L>(slot.value, slot.scale, m.slices, m.elements);
    return slot;
  }

  // Returns the exponent of the smallest product of entries that there may be.
  int64_t load_inputs(const ContractionStep& step) {
    int64_t lowest = 0;
    for (int32_t i = 0; i < step.inputs; ++i) lowest += find(step.input[i].message).lowest;
    return lowest;
  }

  // The inputs for one slice of the output.
  SUMPROD_INLINE void find_rows(const ContractionStep& step, int64_t slice) {
    for (int32_t i = 0; i < step.inputs; ++i) {
      const ContractionInput& input = step.input[i];
      const Slot<L>& slot = slots_[input.message];
      const int64_t at = input.slice_at[slice] * shape_.message[input.message].elements;
      rows_[i] = {slot.value != nullptr ? slot.value + at : nullptr,
                  slot.shared != nullptr ? slot.shared + at : nullptr};
    }
  }

  SUMPROD_INLINE Lane entry_of(const ContractionStep& step, int32_t i, int64_t element, int64_t term) const {
    const ContractionInput& input = step.input[i];
    return rows_[i].at(input.element_at[element] + input.term_at[term]);
  }

  // ---- sums of products

  // The product of all inputs, or the sum of their logs, for one element and term.
  SUMPROD_INLINE Lane product_of(const ContractionStep& step, int64_t element, int64_t term) const {
    Lane product = entry_of(step, 0, element, term);
    for (int32_t i = 1; i < step.inputs; ++i) {
      const Lane x = entry_of(step, i, element, term);
      product = kScaled ? product * x : product + x;
    }
    return product;
  }

  // The product of the inputs that depend on both kinds of dims.
  SUMPROD_INLINE Lane product_of_both(const ContractionStep& step, int64_t element, int64_t term) const {
    Lane product = L::all(Real(1));
    for (int32_t i = 0; i < step.inputs; ++i) {
      if (step.input[i].role == ContractionRole::both) product *= entry_of(step, i, element, term);
    }
    return product;
  }

  // out[i] = out[i] * entry(i), or entry(i), for an input's entries in the order of a table.
  static void times_row(const Row<L>& row, const int32_t* at, int64_t count, bool first, Lane* out) {
    if (row.value != nullptr || W == 1) {
      const Lane* value = row.value;
      if (first) {
        for (int64_t i = 0; i < count; ++i) out[i] = value[at[i]];
      } else {
        for (int64_t i = 0; i < count; ++i) out[i] *= value[at[i]];
      }
    } else {
      const Real* shared = row.shared;
      if (first) {
        for (int64_t i = 0; i < count; ++i) out[i] = L::all(shared[at[i]]);
      } else {
        for (int64_t i = 0; i < count; ++i) out[i] *= L::all(shared[at[i]]);
      }
    }
  }

  // For each term the product of the inputs that have no dim of the output.
  const Lane* term_row(const ContractionStep& step) const {
    Lane* out = reinterpret_cast<Lane*>(memory_.term_row);
    bool first = true;
    for (int32_t i = 0; i < step.inputs; ++i) {
      if (step.input[i].role != ContractionRole::terms) continue;
      times_row(rows_[i], step.input[i].term_at, step.terms, first, out);
      first = false;
    }
    if (first) {
      for (int64_t t = 0; t < step.terms; ++t) out[t] = L::all(Real(1));
    }
    return out;
  }

  // Times the inputs that are not summed over, for each element.
  void times_elements(const ContractionStep& step, int64_t elements, Lane* out) const {
    for (int32_t i = 0; i < step.inputs; ++i) {
      const ContractionRole role = step.input[i].role;
      if (role == ContractionRole::elements || role == ContractionRole::neither) {
        times_row(rows_[i], step.input[i].element_at, elements, false, out);
      }
    }
  }

  static bool has_role(const ContractionStep& step, ContractionRole role) {
    for (int32_t i = 0; i < step.inputs; ++i) {
      if (step.input[i].role == role) return true;
    }
    return false;
  }

  void scaled_sums(const ContractionStep& step, int64_t elements, Lane* out) const {
    const Lane* row = term_row(step);
    if (step.matrix >= 0) {
      const Row<L>& matrix = rows_[step.matrix];
      if constexpr (W > 1) {
        if (matrix.value == nullptr) {
          row_times_matrix<Real>(row, matrix.shared, step.terms, elements, out);
        } else {
          row_times_matrix<Real>(row, matrix.value, step.terms, elements, out);
        }
      } else {
        row_times_matrix<Real>(row, matrix.value, step.terms, elements, out);
      }
    } else if (has_role(step, ContractionRole::both)) {
      for (int64_t e = 0; e < elements; ++e) {
        Lane sum = {};
        for (int64_t t = 0; t < step.terms; ++t) sum += row[t] * product_of_both(step, e, t);
        out[e] = sum;
      }
    } else {
      Lane sum = {};
      for (int64_t t = 0; t < step.terms; ++t) sum += row[t];
      for (int64_t e = 0; e < elements; ++e) out[e] = sum;
    }
    times_elements(step, elements, out);
  }

  // The sum, or the largest, of the terms of one element, as a log.
  Lane log_sum(const ContractionStep& step, int64_t element) const {
    Lane top = product_of(step, element, 0);
    Lane nan = top != top ? top : Lane{};
    for (int64_t t = 1; t < step.terms; ++t) {
      const Lane x = product_of(step, element, t);
      nan = x != x ? x : nan;
      top = x > top ? x : top;
    }
    if constexpr (kArithmetic == Arithmetic::max_plus) return nan != nan ? nan : top;
    const Lane base = top > -kInfinity<Real> ? top : Lane{};
    Lane sum = {};
    for (int64_t t = 0; t < step.terms; ++t) sum += L::exp(product_of(step, element, t) - base);
    return nan != nan ? nan : base + L::log(sum);
  }

  // ---- steps

  // False: some sum is so small that products which have vanished could matter (none have, if `exact`).
  bool combine(const ContractionStep& step, bool exact) {
    const ContractionMessage& m = shape_.message[step.output];
    Slot<L>& out = slots_[step.output] = place(step.output);
    Lane smallest = L::all(Real(1));
    for (int64_t s = 0; s < m.slices; ++s) {
      Lane* value = out.value + s * m.elements;
      find_rows(step, s);
      if constexpr (kScaled) {
        scaled_sums(step, m.elements, value);
        if (!exact && has_small(value, m.elements)) return false;
        smallest = normalise(step, s, value, m.elements, smallest);
      } else {
        for (int64_t e = 0; e < m.elements; ++e) value[e] = log_sum(step, e);
      }
    }
    if constexpr (kScaled) {
      for (int l = 0; l < W; ++l) {
        const int64_t exponent = exponent_of<Real>(splat(L::get(smallest, l)))[0];
        out.lowest = exponent < out.lowest ? exponent : out.lowest;
      }
    }
    return true;
  }

  static bool has_small(const Lane* value, int64_t elements) {
    Lane least = value[0];
    for (int64_t e = 1; e < elements; ++e) least = value[e] < least ? value[e] : least;
    bool small = false;
    for (int l = 0; l < W; ++l) small = small || L::get(least, l) < kLeastSum<Real>;
    return small;
  }

  // Brings the largest of a slice into [1, 2); returns the smallest entry that is not 0.
  Lane normalise(const ContractionStep& step, int64_t s, Lane* value, int64_t elements, Lane smallest) {
    Slot<L>& out = slots_[step.output];
    Lane top = {};
    for (int64_t e = 0; e < elements; ++e) top = value[e] > top ? value[e] : top;
    double* scale = out.scale + s * W;
    if constexpr (W == 1) {
      const Int<Real> exponent = exponent_of<Real>(splat(top));
      out.norm[s] = pow2_negated<Real>(exponent)[0];
      *scale = double(exponent[0]) * kLn2;
    } else {
      const Int<Real> exponent = exponent_of<Real>(top);
      out.norm[s] = pow2_negated<Real>(exponent);
      for (int l = 0; l < W; ++l) scale[l] = double(exponent[l]) * kLn2;
    }
    const Lane norm = out.norm[s];
    for (int64_t e = 0; e < elements; ++e) {
      value[e] *= norm;
      // Two steps, so that only the second waits for the entry before.
      const Lane positive = value[e] > Real(0) ? value[e] : L::all(Real(1));
      smallest = positive < smallest ? positive : smallest;
    }
    for (int32_t i = 0; i < step.inputs; ++i) {
      const Slot<L>& in = slots_[step.input[i].message];
      const int64_t slice = step.input[i].slice_at[s];
      if (in.value == nullptr) {
        for (int l = 0; l < W; ++l) scale[l] += in.scale[slice];
      } else {
        for (int l = 0; l < W; ++l) scale[l] += in.scale[slice * W + l];
      }
    }
    return smallest;
  }

  Wide<L> log_of(const Slot<L>& slot, const ContractionMessage& m, int64_t s, int64_t e) const {
    const Row<L> row{slot.value, slot.shared};
    Lane x = row.at(s * m.elements + e);
    const bool shared = slot.value == nullptr;
    Wide<L> log;
    if constexpr (kScaled) {
      x = L::log(x);
      for (int l = 0; l < W; ++l) log.lane[l] = double(L::get(x, l)) + slot.scale[shared ? s : s * W + l];
    } else {
      for (int l = 0; l < W; ++l) log.lane[l] = double(L::get(x, l));
    }
    return log;
  }

  // The sum of the input's logs over the slices reduced, for one slice and element of the output.
  Wide<L> reduced_log(const ContractionStep& step, int64_t s, int64_t e) const {
    const ContractionInput& input = step.input[0];
    const ContractionMessage& m = shape_.message[input.message];
    Wide<L> sum = {};
    for (int64_t t = 0; t < step.terms; ++t) {
      const Wide<L> log = log_of(slots_[input.message], m, input.slice_at[s] + input.term_at[t], e);
      for (int l = 0; l < W; ++l) sum.lane[l] += log.lane[l];
    }
    return sum;
  }

  void reduce_plates(const ContractionStep& step) {
    const ContractionMessage& m = shape_.message[step.output];
    Slot<L>& out = slots_[step.output] = place(step.output);
    for (int64_t s = 0; s < m.slices; ++s) {
      Lane* value = out.value + s * m.elements;
      double top[W] = {};
      if constexpr (kScaled) {
        // In float, a sum over thousands of slices keeps its digits only beside its scale.
        for (int l = 0; l < W; ++l) top[l] = -kInfinity<double>;
        for (int64_t e = 0; e < m.elements; ++e) {
          const Wide<L> log = reduced_log(step, s, e);
          for (int l = 0; l < W; ++l) top[l] = log.lane[l] > top[l] ? log.lane[l] : top[l];
        }
        for (int l = 0; l < W; ++l) top[l] = top[l] == -kInfinity<double> ? 0.0 : top[l];
      }
      for (int64_t e = 0; e < m.elements; ++e) {
        const Wide<L> log = reduced_log(step, s, e);
        for (int l = 0; l < W; ++l) L::set(value[e], l, Real(log.lane[l] - top[l]));
      }
      if constexpr (kScaled) {
        const int64_t lowest = scale_logs<L>(value, out.scale + s * W, 1, m.elements);
        out.lowest = lowest < out.lowest ? lowest : out.lowest;
        for (int l = 0; l < W; ++l) out.scale[s * W + l] += top[l];
        out.norm[s] = L::all(Real(1));
      }
    }
  }

  double* reduce_lanes(const ContractionStep& step, double* partial) {
    const ContractionMessage& m = shape_.message[step.output];
    find(step.input[0].message);
    for (int64_t s = 0; s < m.slices; ++s) {
      for (int64_t e = 0; e < m.elements; ++e) {
        const Wide<L> log = reduced_log(step, s, e);
        for (int l = 0; l < count_; ++l) *partial += log.lane[l];
        ++partial;
      }
    }
    return partial;
  }

  const ContractionPhase& phase_;
  const ContractionShape& shape_;
  const TileMemory memory_;
  Slot<L>* const slots_;
  Row<L>* const rows_;
  const int64_t first_, count_;
  const bool uses_shared_;
};

}  // namespace
