// Messages of a contraction in memory: one entry is a register, whose lanes are slices of the lane plate,
// or, without such a plate, one number. Included by ops/contract_cpu.cpp only.
#pragma once

#include <stddef.h>

#include "core/contraction.h"
#include "core/exp_log.h"
#include "core/simd.h"

namespace {

using sumprod::ContractionMessage;
using sumprod::ContractionView;

// What an entry is.
template <class RealType>
struct ManyLanes {
  using Real = RealType;
  using Lane = Vec<Real>;
  static constexpr int kWidth = Simd<Real>::kWidth;
  static Lane all(Real x) { return splat(x); }
  static Real get(Lane v, int l) { return v[l]; }
  static void set(Lane& v, int l, Real x) { v[l] = x; }
  static Lane log(Lane v) { return log_nonnegative<Real>(v); }
  static Lane exp(Lane v) { return exp_nonpositive<Real>(v); }
};

template <class RealType>
struct OneLane {
  using Real = RealType;
  using Lane = Real;
  static constexpr int kWidth = 1;
  static Lane all(Real x) { return x; }
  static Real get(Lane v, int) { return v; }
  static void set(Lane& v, int, Real x) { v = x; }
  static Lane log(Lane v) { return log_nonnegative<Real>(splat(v))[0]; }
  static Lane exp(Lane v) { return exp_nonpositive<Real>(splat(v))[0]; }
};

// A sum of logs in double, per lane: over thousands of slices a float would lose digits.
template <class L>
struct Wide {
  double lane[L::kWidth];
};

// ---- a tile's memory -----------------------------------------------------------------------

// The memory that tiles use one after the other; sizes are those of the phase.
struct TileMemory {
  char* values;  // entries of messages
  char* bars;    // of their gradients, in the same layout
  double* scales;
  char* norms;
  char* slots;
  char* rows;
  char *term_row, *term_grad;  // one entry per term
  char* element_row;           // one per element
  char* turned;                // a square of entries
};

// A message. An entry of a factor that is the same in all lanes is one number.
template <class L>
struct Slot {
  typename L::Lane* value;  // null: `shared` instead
  const typename L::Real* shared;
  double* scale;           // log-scale, [slices, lanes]; of shared ones [slices]
  typename L::Lane* norm;  // the power of two by which a step's sums were multiplied, per slice
  int64_t lowest;          // exponent of the smallest entry that is not 0
};

// What stands for the input of a step, in one slice.
template <class L>
struct Row {
  const typename L::Lane* value;
  const typename L::Real* shared;

  SUMPROD_INLINE typename L::Lane at(int64_t index) const {
    if constexpr (L::kWidth == 1) {
      return value[index];
    } else {
      return value != nullptr ? value[index] : splat(shared[index]);
    }
  }
};

// ---- from and to tensors --------------------------------------------------------------------

template <class T>
struct TypeOfPointee;
template <class T>
struct TypeOfPointee<T*> {
  using Type = T;
};

// Calls f with a typed pointer.
template <class F>
SUMPROD_INLINE void with_type(bool is_double, void* data, F f) {
  if (is_double) {
    f(static_cast<double*>(data));
  } else {
    f(static_cast<float*>(data));
  }
}
template <class F>
SUMPROD_INLINE void with_type(bool is_double, const void* data, F f) {
  if (is_double) {
    f(static_cast<const double*>(data));
  } else {
    f(static_cast<const float*>(data));
  }
}

// How many entries, W or none, lie side by side in each lane from `e` on.
template <class Real>
SUMPROD_INLINE bool side_by_side(const ContractionView& view, int64_t e, int64_t elements) {
  constexpr int W = Simd<Real>::kWidth;
  return e + W <= elements && e % view.run + W <= view.run;
}

// One slice's elements, for the lanes from `first` on. Lanes beyond the plate repeat its last slice: they
// are computed, and never stored.
template <class L, class Stored>
void load_slice(const ContractionMessage& m, const ContractionView& view, const Stored* row, int64_t count,
                typename L::Lane* out) {
  using Real = typename L::Real;
  int64_t e = 0;
  if constexpr (L::kWidth == 1) {
    (void)count;
    for (; e < m.elements; ++e) out[e] = Real(row[view.element[e]]);
  } else {
    constexpr int W = L::kWidth;
    if (view.lane_stride == 0) {
      for (; e < m.elements; ++e) out[e] = splat(Real(row[view.element[e]]));
    }
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
    for (; e < m.elements; ++e) {
      const Stored* p = row + view.element[e];
      for (int l = 0; l < W; ++l) out[e][l] = Real(p[(l < count ? l : count - 1) * view.lane_stride]);
    }
  }
}

template <class L, class Stored>
void load_message(const ContractionMessage& m, const ContractionView& view, const Stored* data, int64_t first,
                  int64_t count, typename L::Lane* out) {
  data += first * view.lane_stride;
  for (int64_t s = 0; s < m.slices; ++s) load_slice<L>(m, view, data + view.slice[s], count, out + s * m.elements);
}

// The reverse: entries are put into, or added to, one slice of a tensor.
template <class L, bool kAdds, class Stored>
void store_slice(const ContractionMessage& m, const ContractionView& view, const typename L::Lane* values,
                 int64_t count, Stored* row) {
  using Real = typename L::Real;
  const auto put = [](Stored* p, Real x) { *p = kAdds ? Stored(*p + x) : Stored(x); };
  int64_t e = 0;
  if constexpr (L::kWidth > 1 && !kAdds) {
    constexpr int W = L::kWidth;
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
  }
  for (; e < m.elements; ++e) {
    Stored* p = row + view.element[e];
    for (int l = 0; l < count; ++l) put(p + l * view.lane_stride, L::get(values[e], l));
  }
}

template <class L, class Stored>
void store_message(const ContractionMessage& m, const ContractionView& view, bool adds, const typename L::Lane* values,
                   Stored* data, int64_t first, int64_t count) {
  data += first * view.lane_stride;
  for (int64_t s = 0; s < m.slices; ++s, values += m.elements) {
    if (adds) {
      store_slice<L, true>(m, view, values, count, data + view.slice[s]);
    } else {
      store_slice<L, false>(m, view, values, count, data + view.slice[s]);
    }
  }
}

// ---- logs to scaled numbers -----------------------------------------------------------------

// Products of normal numbers whose exponents add up to at least this are normal.
template <class Real>
constexpr int64_t kLowestExponent = sizeof(Real) == 4 ? -110 : -1000;

// Where products may be below that, those that vanish are less than 2^-126 (2^-1022) times the rest of their
// factors: beside a sum of at least this, nothing, as long as there are not too many.
template <class Real>
constexpr Real kLeastSum = sizeof(Real) == 4 ? Real(0x1p-70) : Real(0x1p-900);
constexpr int32_t kFewInputs = 8;
constexpr int64_t kFewTerms = int64_t{1} << 20;

// Entries are less than 2: a product of so many is finite.
template <class Real>
constexpr int64_t kMostInputs = sizeof(Real) == 4 ? 100 : 1000;

template <class Real>
SUMPROD_INLINE Real least_lane(Vec<Real> v) {
  Real low = v[0];
  for (int l = 1; l < Simd<Real>::kWidth; ++l) low = v[l] < low ? v[l] : low;
  return low;
}

// The exponent of the smallest entry that is not 0, given its log over the largest.
template <class Real>
SUMPROD_INLINE int64_t exponent_of_log(Real low) {
  const Real exponent = low * Real(1.44269504088896340736);
  return exponent < Real(-1e6) ? int64_t(-1000000) : int64_t(exponent) - 1;
}

// Replaces one slice's logs by values over the largest; returns the log of the smallest.
template <class Real>
Vec<Real> scale_slice(Vec<Real>* value, int64_t elements, double* scale) {
  Vec<Real> top = splat(-kInfinity<Real>), low = {};
  for (int64_t e = 0; e < elements; ++e) top = max_fast(value[e], top);
  // Nothing but -inf: 0 is as good a scale, and -inf - -inf is avoided.
  top = top == -kInfinity<Real> ? splat(Real(0)) : top;
  for (int64_t e = 0; e < elements; ++e) {
    const Vec<Real> below = value[e] - top;
    const Vec<Real> finite = below > -kInfinity<Real> ? below : Vec<Real>{};
    low = finite < low ? finite : low;
    value[e] = exp_nonpositive<Real>(below);
  }
  for (int l = 0; l < Simd<Real>::kWidth; ++l) scale[l] = double(top[l]);
  return low;
}

// The same where a register holds elements.
template <class Real>
Real scale_row(Real* value, int64_t elements, double* scale) {
  constexpr int W = Simd<Real>::kWidth;
  const auto chunk = [&](int64_t e) {
    return e + W <= elements ? load(value + e) : load_partial<Real>(value + e, elements - e, -kInfinity<Real>);
  };
  Vec<Real> top = splat(-kInfinity<Real>), low = {};
  for (int64_t e = 0; e < elements; e += W) top = max_fast(chunk(e), top);
  Real most = horizontal_max<Real>(top);
  most = most == -kInfinity<Real> ? Real(0) : most;
  for (int64_t e = 0; e < elements; e += W) {
    const Vec<Real> below = chunk(e) - most;
    const Vec<Real> finite = below > -kInfinity<Real> ? below : Vec<Real>{};
    low = finite < low ? finite : low;
    const Vec<Real> x = exp_nonpositive<Real>(below);
    if (e + W <= elements) {
      store(value + e, x);
    } else {
      store_partial<Real>(value + e, elements - e, x);
    }
  }
  *scale = double(most);
  return least_lane<Real>(low);
}

// All slices of a message; returns the exponent of the smallest entry.
template <class L>
int64_t scale_logs(typename L::Lane* value, double* scale, int64_t slices, int64_t elements) {
  using Real = typename L::Real;
  Real lowest = 0;
  for (int64_t s = 0; s < slices; ++s, value += elements, scale += L::kWidth) {
    Real low;
    if constexpr (L::kWidth == 1) {
      low = scale_row<Real>(value, elements, scale);
    } else {
      low = least_lane<Real>(scale_slice<Real>(value, elements, scale));
    }
    lowest = low < lowest ? low : lowest;
  }
  return exponent_of_log<Real>(lowest);
}

}  // namespace
