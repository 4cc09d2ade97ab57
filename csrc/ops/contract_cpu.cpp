// Kernels of `contract`: a plan run on one tile, in one of three arithmetics.
//
//   scaled    the default: a message is the exponential of its logs over the largest of its slice, with
//             the scale, in double, beside it. A step is multiply-adds. Exact to rounding as long as no
//             product can underflow, which is known from the smallest entries of the inputs. In float for
//             float32 factors; a tile for which that is too narrow is run again in double.
//   log_sum   where double is too narrow: logs, and two passes for each sum.
//   max_plus  logs, and the largest term instead of the sum.
#include <stddef.h>

#include "core/contraction.h"
#include "core/exp_log.h"
#include "core/simd.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

namespace {

constexpr double kLn2 = 0.69314718055994530942;

enum class Arithmetic { scaled, log_sum, max_plus };

// ---- memory of a tile -----------------------------------------------------------------------

// A message in memory: elements of all slices, then per slice the log-scale of each lane, and the power of
// two by which the step's sums were multiplied.
template <class Real>
struct Slot {
  Vec<Real>* value;
  double* scale;  // [slices, lanes]
  Vec<Real>* norm;
  int64_t lowest;  // exponent of the smallest entry that is not 0
};

// Beside its elements a message takes three registers per slice: two for the scale in double, one for
// the norm. contract_program.cpp lays messages out.
template <class Real>
Slot<Real> slot_at(char* base, const ContractionMessage& m) {
  constexpr int64_t kRegister = SUMPROD_VECTOR_BYTES;
  const int64_t values = m.slices * m.elements * kRegister, scales = m.slices * 2 * kRegister;
  return {reinterpret_cast<Vec<Real>*>(base), reinterpret_cast<double*>(base + values),
          reinterpret_cast<Vec<Real>*>(base + values + scales), 0};
}

// ---- tensors --------------------------------------------------------------------------------

template <class Real, class Stored>
SUMPROD_INLINE Vec<Real> load_lanes(const Stored* p, int64_t stride, int64_t count) {
  Vec<Real> v;
  // Lanes beyond the plate repeat its last slice: they are computed, and never stored.
  for (int l = 0; l < Simd<Real>::kWidth; ++l) v[l] = Real(p[(l < count ? l : count - 1) * stride]);
  return v;
}

template <class Real, class Stored>
SUMPROD_INLINE void store_lanes(Stored* p, int64_t stride, int64_t count, Vec<Real> v) {
  for (int l = 0; l < count; ++l) p[l * stride] = Stored(v[l]);
}

// Whether the next W elements of a view lie side by side.
template <class Real>
SUMPROD_INLINE bool side_by_side(const ContractionView& view, int64_t e, int64_t elements) {
  constexpr int W = Simd<Real>::kWidth;
  return e + W <= elements && e % view.run + W <= view.run;
}

// The elements of a message for the lanes from `first` on, each in one register.
template <class Real, class Stored>
void load_message(const ContractionMessage& m, const ContractionView& view, const Stored* data, int64_t first,
                  int64_t count, Vec<Real>* out) {
  constexpr int W = Simd<Real>::kWidth;
  data += first * view.lane_stride;
  for (int64_t s = 0; s < m.slices; ++s, out += m.elements) {
    const Stored* row = data + view.slice[s];
    int64_t e = 0;
    if (view.lane_stride == 0) {
      for (; e < m.elements; ++e) out[e] = splat(Real(row[view.element[e]]));
    }
    // A partial tile too: the missing lanes read the last slice again.
    for (; side_by_side<Real>(view, e, m.elements); e += W) {
      Vec<Real> rows[W];
      SUMPROD_UNROLL
      for (int l = 0; l < W; ++l) {
        const Stored* block = row + view.element[e] + (l < count ? l : count - 1) * view.lane_stride;
        if constexpr (sizeof(Real) == sizeof(Stored)) {
          rows[l] = load(block);
        } else {
          for (int i = 0; i < W; ++i) rows[l][i] = Real(block[i]);
        }
      }
      transpose<Real>(rows);
      SUMPROD_UNROLL
      for (int i = 0; i < W; ++i) out[e + i] = rows[i];
    }
    for (; e < m.elements; ++e) out[e] = load_lanes<Real>(row + view.element[e], view.lane_stride, count);
  }
}

template <class Real, class Stored>
void store_message(const ContractionMessage& m, const ContractionView& view, const Vec<Real>* values, Stored* data,
                   int64_t first, int64_t count) {
  constexpr int W = Simd<Real>::kWidth;
  data += first * view.lane_stride;
  for (int64_t s = 0; s < m.slices; ++s, values += m.elements) {
    Stored* row = data + view.slice[s];
    int64_t e = 0;
    for (; side_by_side<Real>(view, e, m.elements); e += W) {
      Vec<Real> rows[W];
      SUMPROD_UNROLL
      for (int i = 0; i < W; ++i) rows[i] = values[e + i];
      transpose<Real>(rows);
      for (int l = 0; l < count; ++l) {
        Stored* block = row + view.element[e] + l * view.lane_stride;
        if constexpr (sizeof(Real) == sizeof(Stored)) {
          store(block, rows[l]);
        } else {
          for (int i = 0; i < W; ++i) block[i] = Stored(rows[l][i]);
        }
      }
    }
    for (; e < m.elements; ++e) store_lanes<Real>(row + view.element[e], view.lane_stride, count, values[e]);
  }
}

// ---- numbers in scaled arithmetic -----------------------------------------------------------

// Products of normal numbers whose exponents add up to at least this are normal.
template <class Real>
constexpr int64_t kLowestExponent = sizeof(Real) == 4 ? -110 : -1000;

template <class Real>
SUMPROD_INLINE int64_t least_lane(Vec<Real> v) {
  Real low = v[0];
  for (int l = 1; l < Simd<Real>::kWidth; ++l) low = v[l] < low ? v[l] : low;
  return low < Real(-1e6) ? int64_t(-1000000) : int64_t(low);
}

// Replaces logs by values over the largest of their slice.
template <class Real>
void scale_logs(Slot<Real>& slot, int64_t slices, int64_t elements) {
  constexpr int W = Simd<Real>::kWidth;
  Vec<Real> low = {};
  for (int64_t s = 0; s < slices; ++s) {
    Vec<Real>* value = slot.value + s * elements;
    Vec<Real> top = splat(-kInfinity<Real>);
    for (int64_t e = 0; e < elements; ++e) top = max_fast(value[e], top);
    // Nothing but -inf: 0 is as good a scale, and -inf - -inf is avoided.
    top = top == -kInfinity<Real> ? splat(Real(0)) : top;
    for (int64_t e = 0; e < elements; ++e) {
      const Vec<Real> below = value[e] - top;
      low = (below < low) & (below > -kInfinity<Real>) ? below : low;
      value[e] = exp_nonpositive<Real>(below);
    }
    for (int l = 0; l < W; ++l) slot.scale[s * W + l] = double(top[l]);
    slot.norm[s] = splat(Real(1));
  }
  slot.lowest = least_lane<Real>(low * Real(1.0 / kLn2)) - 1;
}

// Lanes in double: a register of floats is two of them.
template <class Real>
struct Wide {
  double lane[Simd<Real>::kWidth];
};

// ---- one step -------------------------------------------------------------------------------

template <class Real, Arithmetic kArithmetic>
SUMPROD_INLINE Vec<Real> product_of(const ContractionStep& step, Vec<Real>* const* rows, int64_t term) {
  Vec<Real> product = rows[0][step.term_at[0][term]];
  for (int32_t i = 1; i < step.inputs; ++i) {
    const Vec<Real> x = rows[i][step.term_at[i][term]];
    product = kArithmetic == Arithmetic::scaled ? product * x : product + x;
  }
  return product;
}

// Sum over the terms of the product of the inputs, for one element of the output.
template <class Real, Arithmetic kArithmetic>
SUMPROD_NOINLINE Vec<Real> sum_of_products(const ContractionStep& step, Vec<Real>* const* rows) {
  using V = Vec<Real>;
  if constexpr (kArithmetic == Arithmetic::scaled) {
    V sum = {}, other = {};
    if (step.inputs == 2) {
      const V *a = rows[0], *b = rows[1];
      const int32_t *at = step.term_at[0], *bt = step.term_at[1];
      int64_t t = 0;
      for (; t + 2 <= step.terms; t += 2) {
        sum += a[at[t]] * b[bt[t]];
        other += a[at[t + 1]] * b[bt[t + 1]];
      }
      if (t < step.terms) sum += a[at[t]] * b[bt[t]];
      return sum + other;
    }
    for (int64_t t = 0; t < step.terms; ++t) sum += product_of<Real, kArithmetic>(step, rows, t);
    return sum;
  } else {
    V top = product_of<Real, kArithmetic>(step, rows, 0);
    V nan = top != top ? top : V{};
    for (int64_t t = 1; t < step.terms; ++t) {
      const V x = product_of<Real, kArithmetic>(step, rows, t);
      nan = x != x ? x : nan;
      top = x > top ? x : top;
    }
    if constexpr (kArithmetic == Arithmetic::max_plus) return nan != nan ? nan : top;
    const V base = top > -kInfinity<Real> ? top : V{};
    V sum = {};
    for (int64_t t = 0; t < step.terms; ++t) {
      sum += exp_nonpositive<Real>(product_of<Real, kArithmetic>(step, rows, t) - base);
    }
    return nan != nan ? nan : base + log_nonnegative<Real>(sum);
  }
}

// ---- a tile ---------------------------------------------------------------------------------

// The memory that tiles use one after the other.
struct TileMemory {
  char* values;  // of messages
  char* bars;    // of their gradients, in the same layout
  char* slots;
  char* rows;
};

// The lanes from `first` on of the lane plate, through all steps of a phase.
template <class Real, Arithmetic kArithmetic>
class Tile {
  using V = Vec<Real>;
  static constexpr int W = Simd<Real>::kWidth;
  static constexpr bool kScaled = kArithmetic == Arithmetic::scaled;
  static constexpr Real kImpossible = kScaled ? Real(0) : -kInfinity<Real>;

 public:
  Tile(const ContractionPhase& phase, const TileMemory& memory, int64_t first)
      : phase_(phase),
        memory_(memory),
        slots_(reinterpret_cast<Slot<Real>*>(memory.slots)),
        rows_(reinterpret_cast<V**>(memory.rows)),
        first_(first),
        count_(phase.lanes - first < W ? phase.lanes - first : W) {}

  // Runs all steps; adds what is reduced across lanes to `partial`. False, and nothing added: a product
  // might underflow.
  bool forward(double* partial) {
    for (int32_t i = 0; i < phase_.steps; ++i) {
      const ContractionStep& step = phase_.step[i];
      if (!load_inputs(step)) return false;
      if (step.reduces_lanes) continue;
      if (step.reduces_plates) {
        reduce_plates(step);
      } else {
        combine(step);
      }
    }
    // Smaller entries than that are not inputs of anything, but they are answers.
    for (int32_t r = 0; r < phase_.results; ++r) {
      if (!representable(find(phase_.result[r].message).lowest)) return false;
    }
    for (int32_t i = 0; i < phase_.steps; ++i) {
      const ContractionStep& step = phase_.step[i];
      if (step.reduces_lanes) partial = reduce_lanes(step, partial);
    }
    return true;
  }

  void write_results() {
    for (int32_t r = 0; r < phase_.results; ++r) {
      const ContractionResult& result = phase_.result[r];
      if (result.data == nullptr) continue;
      const ContractionMessage& m = phase_.message[result.message];
      const Slot<Real> slot = find(result.message);
      with_type(result.view, result.data, [&](auto* data) {
        data += first_ * result.view.lane_stride;
        for (int64_t s = 0; s < m.slices; ++s) {
          for (int64_t e = 0; e < m.elements; ++e) {
            const Wide<Real> log = log_of(slot, m, s, e);
            auto* p = data + result.view.slice[s] + result.view.element[e];
            using Stored = typename Pointee<decltype(p)>::Type;
            for (int l = 0; l < count_; ++l) p[l * result.view.lane_stride] = Stored(log.lane[l]);
          }
        }
      });
    }
  }

  // Gradients of all factors, after forward() of the same tile.
  void backward() {
    V* bars = reinterpret_cast<V*>(memory_.bars);
    for (int64_t i = 0; i < phase_.scratch; ++i) bars[i] = V{};
    for (int32_t r = 0; r < phase_.results; ++r) {
      if (phase_.message[phase_.result[r].message].factor == nullptr) load_result_grad(phase_.result[r]);
    }
    const double* reduced = phase_.partial_grad + phase_.partial_row;
    for (int32_t i = phase_.steps - 1; i >= 0; --i) {
      const ContractionStep& step = phase_.step[i];
      load_inputs(step);
      each_factor(step, [&](int32_t number) { clear_bars(number); });
      if (step.reduces_lanes) {
        reduced -= phase_.message[step.output].slices * phase_.message[step.output].elements;
        spread(step, [&](int64_t at) { return splat(Real(reduced[at])); });
      } else if (step.reduces_plates) {
        const V* out = bar(step.output);
        spread(step, [&](int64_t at) { return out[at]; });
      } else {
        combine_backward(step);
      }
      each_factor(step, [&](int32_t number) { write_factor_grad(number); });
    }
    // A factor that is a result itself.
    for (int32_t r = 0; r < phase_.results; ++r) {
      const int32_t number = phase_.result[r].message;
      if (phase_.message[number].factor == nullptr) continue;
      find(number);
      clear_bars(number);
      load_result_grad(phase_.result[r]);
      write_factor_grad(number);
    }
  }

  // Values of all variables, after forward() of the same tile: backwards through the steps, each
  // variable from its distribution given what the step's output has been set to.
  void draw() {
    for (int32_t i = phase_.steps - 1; i >= 0; --i) {
      const ContractionStep& step = phase_.step[i];
      const ContractionDraw& draw = phase_.draw[i];
      if (draw.drawn == 0) continue;
      load_inputs(step);
      const int64_t slices = phase_.message[step.output].slices;
      for (int64_t s = 0; s < slices; ++s) {
        for (int l = 0; l < count_; ++l) draw_one(step, draw, s, l);
      }
    }
  }

 private:
  template <class Pointer>
  struct Pointee;
  template <class T>
  struct Pointee<T*> {
    using Type = T;
  };

  // Calls f with a typed pointer.
  template <class F>
  static void with_type(const ContractionView& view, void* data, F f) {
    if (view.is_double) {
      f(static_cast<double*>(data));
    } else {
      f(static_cast<float*>(data));
    }
  }
  template <class F>
  static void with_type(const ContractionView& view, const void* data, F f) {
    if (view.is_double) {
      f(static_cast<const double*>(data));
    } else {
      f(static_cast<const float*>(data));
    }
  }

  static bool representable(int64_t lowest) { return !kScaled || lowest >= kLowestExponent<Real>; }

  Slot<Real> place(int32_t number) const {
    const ContractionMessage& m = phase_.message[number];
    return slot_at<Real>(memory_.values + m.offset * int64_t(sizeof(V)), m);
  }
  V* bar(int32_t number) const { return reinterpret_cast<V*>(memory_.bars) + phase_.message[number].offset; }

  // ---- inputs

  // A message's slot; a factor's values are read first.
  const Slot<Real>& find(int32_t number) {
    const ContractionMessage& m = phase_.message[number];
    if (m.factor == nullptr) return slots_[number];
    Slot<Real>& slot = slots_[number] = place(number);
    with_type(m.factor->view, m.factor->data,
              [&](const auto* data) { load_message<Real>(m, m.factor->view, data, first_, count_, slot.value); });
    if constexpr (kScaled) scale_logs<Real>(slot, m.slices, m.elements);
    return slot;
  }

  bool load_inputs(const ContractionStep& step) {
    int64_t lowest = 0;
    for (int32_t i = 0; i < step.inputs; ++i) lowest += find(step.input[i]).lowest;
    return representable(lowest);
  }

  template <class F>
  void each_factor(const ContractionStep& step, F f) const {
    for (int32_t i = 0; i < step.inputs; ++i) {
      if (phase_.message[step.input[i]].factor != nullptr) f(step.input[i]);
    }
  }

  // The rows of the inputs for one slice and one element of the output.
  SUMPROD_INLINE void find_rows(const ContractionStep& step, int64_t slice, int64_t element) {
    for (int32_t i = 0; i < step.inputs; ++i) {
      const int32_t number = step.input[i];
      rows_[i] = slots_[number].value + step.slice_at[i][slice] * phase_.message[number].elements +
                 step.element_at[i][element];
    }
  }

  // ---- forward steps

  void combine(const ContractionStep& step) {
    const ContractionMessage& m = phase_.message[step.output];
    Slot<Real>& out = slots_[step.output] = place(step.output);
    V smallest = splat(Real(1));
    for (int64_t s = 0; s < m.slices; ++s) {
      V* value = out.value + s * m.elements;
      V top = {};
      for (int64_t e = 0; e < m.elements; ++e) {
        find_rows(step, s, e);
        value[e] = sum_of_products<Real, kArithmetic>(step, rows_);
        top = value[e] > top ? value[e] : top;
      }
      if constexpr (kScaled) smallest = normalise(step, s, top, value, m.elements, smallest);
    }
    if constexpr (kScaled) {
      const Int<Real> exponent = exponent_of<Real>(smallest);
      for (int l = 0; l < W; ++l) out.lowest = exponent[l] < out.lowest ? exponent[l] : out.lowest;
    }
  }

  // Brings the largest of a slice into [1, 2); returns the smallest entry that is not 0.
  V normalise(const ContractionStep& step, int64_t s, V top, V* value, int64_t elements, V smallest) {
    Slot<Real>& out = slots_[step.output];
    const Int<Real> exponent = exponent_of<Real>(top);
    const V norm = pow2_negated<Real>(exponent);
    for (int64_t e = 0; e < elements; ++e) {
      value[e] *= norm;
      smallest = (value[e] > Real(0)) & (value[e] < smallest) ? value[e] : smallest;
    }
    out.norm[s] = norm;
    double* scale = out.scale + s * W;
    for (int l = 0; l < W; ++l) scale[l] = double(exponent[l]) * kLn2;
    for (int32_t i = 0; i < step.inputs; ++i) {
      const double* in = slots_[step.input[i]].scale + step.slice_at[i][s] * W;
      for (int l = 0; l < W; ++l) scale[l] += in[l];
    }
    return smallest;
  }

  Wide<Real> log_of(const Slot<Real>& slot, const ContractionMessage& m, int64_t s, int64_t e) const {
    V x = slot.value[s * m.elements + e];
    Wide<Real> log;
    if constexpr (kScaled) {
      x = log_nonnegative<Real>(x);
      for (int l = 0; l < W; ++l) log.lane[l] = double(x[l]) + slot.scale[s * W + l];
    } else {
      for (int l = 0; l < W; ++l) log.lane[l] = double(x[l]);
    }
    return log;
  }

  // The sum of the input's logs over the slices reduced, for one slice and element of the output.
  Wide<Real> reduced_log(const ContractionStep& step, int64_t s, int64_t e) const {
    const ContractionMessage& m = phase_.message[step.input[0]];
    Wide<Real> sum = {};
    for (int64_t t = 0; t < step.terms; ++t) {
      const Wide<Real> log = log_of(slots_[step.input[0]], m, step.slice_at[0][s] + step.term_at[0][t], e);
      for (int l = 0; l < W; ++l) sum.lane[l] += log.lane[l];
    }
    return sum;
  }

  void reduce_plates(const ContractionStep& step) {
    const ContractionMessage& m = phase_.message[step.output];
    Slot<Real>& out = slots_[step.output] = place(step.output);
    for (int64_t s = 0; s < m.slices; ++s) {
      double top[W] = {};
      if constexpr (kScaled) {
        // In float, a sum over thousands of slices keeps its digits only beside its scale.
        for (int l = 0; l < W; ++l) top[l] = -kInfinity<double>;
        for (int64_t e = 0; e < m.elements; ++e) {
          const Wide<Real> log = reduced_log(step, s, e);
          for (int l = 0; l < W; ++l) top[l] = log.lane[l] > top[l] ? log.lane[l] : top[l];
        }
        for (int l = 0; l < W; ++l) top[l] = top[l] == -kInfinity<double> ? 0.0 : top[l];
      }
      for (int64_t e = 0; e < m.elements; ++e) {
        const Wide<Real> log = reduced_log(step, s, e);
        for (int l = 0; l < W; ++l) out.value[s * m.elements + e][l] = Real(log.lane[l] - top[l]);
      }
      for (int l = 0; l < W; ++l) out.scale[s * W + l] = top[l];
    }
    if constexpr (kScaled) rescale(out, m.slices, m.elements);
  }

  // scale_logs() of logs that have a scale already.
  void rescale(Slot<Real>& slot, int64_t slices, int64_t elements) {
    for (int64_t s = 0; s < slices; ++s) {
      double before[W];
      for (int l = 0; l < W; ++l) before[l] = slot.scale[s * W + l];
      Slot<Real> one{slot.value + s * elements, slot.scale + s * W, slot.norm + s, 0};
      scale_logs<Real>(one, 1, elements);
      for (int l = 0; l < W; ++l) slot.scale[s * W + l] += before[l];
      slot.lowest = one.lowest < slot.lowest ? one.lowest : slot.lowest;
    }
  }

  double* reduce_lanes(const ContractionStep& step, double* partial) {
    const ContractionMessage& m = phase_.message[step.output];
    find(step.input[0]);
    for (int64_t s = 0; s < m.slices; ++s) {
      for (int64_t e = 0; e < m.elements; ++e) {
        const Wide<Real> log = reduced_log(step, s, e);
        for (int l = 0; l < count_; ++l) *partial += log.lane[l];
        ++partial;
      }
    }
    return partial;
  }

  // ---- draws

  void draw_one(const ContractionStep& step, const ContractionDraw& draw, int64_t s, int l) {
    const int64_t lane = first_ + l;
    int64_t element = 0;
    for (int32_t v = 0; v < draw.given; ++v) {
      const ContractionChoice& choice = draw.given_choice[v];
      element += choice.stride * choice.data[choice.slice[s] + lane * choice.lane_stride];
    }
    find_rows(step, s, element);
    const int64_t term = draw.uniform == nullptr ? largest_term(step, l)
                                                 : term_at_quantile(step, l, draw.uniform[s * phase_.lanes + lane]);
    for (int32_t v = 0; v < draw.drawn; ++v) {
      const ContractionChoice& choice = draw.drawn_choice[v];
      choice.data[choice.slice[s] + lane * choice.lane_stride] = term / choice.stride % choice.size;
    }
  }

  double weight_of(const ContractionStep& step, int l, int64_t term) const {
    double weight = double(rows_[0][step.term_at[0][term]][l]);
    for (int32_t i = 1; i < step.inputs; ++i) {
      const double x = double(rows_[i][step.term_at[i][term]][l]);
      weight = kScaled ? weight * x : weight + x;
    }
    return weight;
  }

  // The lowest of the largest.
  int64_t largest_term(const ContractionStep& step, int l) const {
    int64_t best = 0;
    double most = weight_of(step, l, 0);
    for (int64_t t = 1; t < step.terms; ++t) {
      const double weight = weight_of(step, l, t);
      if (weight > most) {
        most = weight;
        best = t;
      }
    }
    return best;
  }

  // The first term at which the running sum of weights exceeds that share of their total.
  int64_t term_at_quantile(const ContractionStep& step, int l, double share) const {
    double top = 0;
    if constexpr (!kScaled) {
      top = weight_of(step, l, largest_term(step, l));
      if (!(top > -kInfinity<double>)) return 0;
    }
    const auto weight = [&](int64_t t) {
      const double x = weight_of(step, l, t);
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

  // ---- backward steps

  void load_result_grad(const ContractionResult& result) {
    if (result.grad == nullptr) return;
    const ContractionMessage& m = phase_.message[result.message];
    V* out = bar(result.message);
    const V* value = slots_[result.message].value;
    with_type(result.grad_view, result.grad,
              [&](const auto* data) { load_message<Real>(m, result.grad_view, data, first_, count_, out); });
    // An impossible total has no gradient.
    for (int64_t i = 0; i < m.slices * m.elements; ++i) out[i] = value[i] == kImpossible ? V{} : out[i];
  }

  void clear_bars(int32_t number) {
    const ContractionMessage& m = phase_.message[number];
    for (int64_t i = 0; i < m.slices * m.elements; ++i) bar(number)[i] = V{};
  }

  // With s the sum for an element of the output and g its gradient, each term adds g * term / s to the
  // gradients, with respect to the logs, of all elements that it is a product of.
  void combine_backward(const ContractionStep& step) {
    const ContractionMessage& m = phase_.message[step.output];
    const Slot<Real>& out = slots_[step.output];
    for (int64_t s = 0; s < m.slices; ++s) {
      for (int64_t e = 0; e < m.elements; ++e) {
        const V grad = bar(step.output)[s * m.elements + e];
        const V value = out.value[s * m.elements + e];
        find_rows(step, s, e);
        const V weight = kScaled ? grad * out.norm[s] / value : grad;
        add_shares(step, value == kImpossible ? V{} : weight, value);
      }
    }
  }

  SUMPROD_NOINLINE void add_shares(const ContractionStep& step, V weight, V total) const {
    // The gradient of an element lies as far from the first as its value does.
    const ptrdiff_t to_bar = memory_.bars - memory_.values;
    const auto add = [&](int32_t i, int64_t t, V share) {
      V* at = rows_[i] + step.term_at[i][t];
      *reinterpret_cast<V*>(reinterpret_cast<char*>(at) + to_bar) += share;
    };
    for (int64_t t = 0; t < step.terms; ++t) {
      V share = product_of<Real, kArithmetic>(step, rows_, t);
      if constexpr (kScaled) {
        share *= weight;
      } else {
        const V below = total == -kInfinity<Real> ? V{} : share - total;
        share = weight * exp_nonpositive<Real>(below);
      }
      for (int32_t i = 0; i < step.inputs; ++i) add(i, t, share);
    }
  }

  // Each slice of what was reduced has the gradient of the output.
  template <class F>
  void spread(const ContractionStep& step, F grad) {
    const ContractionMessage& m = phase_.message[step.output];
    for (int64_t s = 0; s < m.slices; ++s) {
      for (int64_t t = 0; t < step.terms; ++t) {
        V* in = bar(step.input[0]) + (step.slice_at[0][s] + step.term_at[0][t]) * m.elements;
        for (int64_t e = 0; e < m.elements; ++e) in[e] += grad(s * m.elements + e);
      }
    }
  }

  void write_factor_grad(int32_t number) {
    const ContractionMessage& m = phase_.message[number];
    const ContractionFactor& factor = *m.factor;
    if (factor.grad == nullptr) return;
    with_type(factor.grad_view, factor.grad,
              [&](auto* data) { store_message<Real>(m, factor.grad_view, bar(number), data, first_, count_); });
  }

  const ContractionPhase& phase_;
  const TileMemory memory_;
  Slot<Real>* const slots_;
  V** const rows_;
  const int64_t first_, count_;
};

// ---- entry points ---------------------------------------------------------------------------

int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Lays out a task's memory and calls f with it; returns the bytes needed.
template <class F>
int64_t with_memory(const ContractionTask& task, bool backward, F f) {
  const ContractionPhase& phase = *task.phase;
  int32_t inputs = 1;
  for (int32_t i = 0; i < phase.steps; ++i) inputs = phase.step[i].inputs > inputs ? phase.step[i].inputs : inputs;
  const int64_t values = rounded(phase.registers * SUMPROD_VECTOR_BYTES);
  const int64_t bars = backward ? values : 0;
  const int64_t slots = rounded(phase.messages * int64_t(sizeof(Slot<double>)));
  const int64_t rows = rounded(inputs * int64_t(sizeof(void*)));
  if (task.memory != nullptr) {
    char* at = static_cast<char*>(task.memory);
    const FlushDenormals flush;
    f(TileMemory{at, at + values, at + values + bars, at + values + bars + slots});
  }
  return values + bars + slots + rows;
}

// Runs the lanes [first, end) in the narrowest arithmetic that is exact for them.
template <class Real, class F>
void run_lanes(const ContractionPhase& phase, const TileMemory& memory, int64_t first, int64_t end, double* partial,
               F finish) {
  Tile<Real, Arithmetic::scaled> tile(phase, memory, first);
  if (tile.forward(partial)) return finish(tile);
  if constexpr (sizeof(Real) == 4) {
    constexpr int W = Simd<double>::kWidth;
    for (; first < end; first += W) run_lanes<double>(phase, memory, first, end, partial, finish);
  } else {
    Tile<double, Arithmetic::log_sum> exact(phase, memory, first);
    exact.forward(partial);
    finish(exact);
  }
}

template <class F>
void run_tile(const ContractionPhase& phase, const TileMemory& memory, int64_t number, F finish) {
  constexpr int W = Simd<float>::kWidth;
  const int64_t first = number * W, end = first + W < phase.lanes ? first + W : phase.lanes;
  double* partial = phase.partial + number * phase.partial_row;
  for (int64_t i = 0; i < phase.partial_row; ++i) partial[i] = 0;
  if (phase.is_float && !phase.max_plus) return run_lanes<float>(phase, memory, first, end, partial, finish);
  for (int64_t lane = first; lane < end; lane += Simd<double>::kWidth) {
    if (phase.max_plus) {
      Tile<double, Arithmetic::max_plus> tile(phase, memory, lane);
      tile.forward(partial);
      finish(tile);
    } else {
      run_lanes<double>(phase, memory, lane, end, partial, finish);
    }
  }
}

}  // namespace

int64_t contract_tiles(const ContractionTask& task) {
  return with_memory(task, false, [&](const TileMemory& memory) {
    for (int64_t i = task.begin; i < task.end; ++i) {
      run_tile(*task.phase, memory, i, [](auto& tile) { tile.write_results(); });
    }
  });
}

int64_t contract_draw_tiles(const ContractionTask& task) {
  return with_memory(task, false, [&](const TileMemory& memory) {
    for (int64_t i = task.begin; i < task.end; ++i) {
      run_tile(*task.phase, memory, i, [](auto& tile) {
        tile.write_results();
        tile.draw();
      });
    }
  });
}

int64_t contract_backward_tiles(const ContractionTask& task) {
  return with_memory(task, true, [&](const TileMemory& memory) {
    for (int64_t i = task.begin; i < task.end; ++i) {
      run_tile(*task.phase, memory, i, [](auto& tile) { tile.backward(); });
    }
  });
}

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
