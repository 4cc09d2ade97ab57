// The operations of contract_device.h, each done by warps: what one warp does at once is a task.
// Included by contract_cuda.cu only.
#pragma once

#include "gpu/device.h"
#include "ops/contract_device.h"

namespace sumprod {

namespace {

using namespace gpu;

constexpr double kInfinity = __builtin_huge_val();
constexpr int kUnrolled = 4;

template <class Real>
SUMPROD_DEVICE double exp_of(double x) {
  return sizeof(Real) == 4 ? double(expf(float(x))) : exp(x);
}

SUMPROD_DEVICE int64_t along(const DeviceAxis& axis, int64_t i, const int64_t* tables) {
  return axis.table < 0 ? i * axis.stride : tables[axis.table + i];
}

SUMPROD_DEVICE double entry(const char* p, bool is_wide) {
  return is_wide ? *reinterpret_cast<const double*>(p) : double(*reinterpret_cast<const float*>(p));
}

// What a thread works on: an output, and its place among the threads that share that output. Those lie 32 / members
// lanes of the warp apart, so that neighbouring threads have neighbouring outputs.
struct Spot {
  int64_t chunk, slice, element;
  int lane;  // in its group of the lane plate
  int member, members;
  bool active;  // else there is no such output
};

// Quotient and remainder; most often 32 bits are enough, and several times faster.
SUMPROD_DEVICE int64_t divide(int64_t x, int64_t by, int64_t& rest) {
  const bool narrow = (x | by) >> 31 == 0;
  const int64_t quotient = narrow ? int64_t(unsigned(x) / unsigned(by)) : x / by;
  rest = x - quotient * by;
  return quotient;
}

SUMPROD_DEVICE Spot spot_of(const DeviceOp& op, int64_t task, int log_group, int lanes_in_group) {
  Spot spot;
  const int outputs = kWarp >> op.log_members, lane = lane_of_thread();
  int64_t output = task * outputs + lane % outputs;
  spot.member = lane / outputs;
  spot.members = 1 << op.log_members;
  spot.active = output < op.outputs;
  if (!spot.active) output = 0;
  spot.chunk = op.chunk_outputs < op.outputs ? divide(output, op.chunk_outputs, output) : 0;
  spot.lane = int(output & ((int64_t(1) << log_group) - 1));
  spot.slice = divide(output >> log_group, op.elements, spot.element);
  spot.active = spot.active && spot.lane < lanes_in_group;
  return spot;
}

// Terms [first, end) of a spot's output; none where there is no output.
struct TermRange {
  int64_t first, end;
};
SUMPROD_DEVICE TermRange terms_of(const DeviceOp& op, const Spot& spot) {
  const int64_t first = spot.chunk * op.chunk_terms, end = first + op.chunk_terms;
  return {first, !spot.active ? first : end < op.terms ? end : op.terms};
}

SUMPROD_DEVICE char* place(const DeviceOperand& operand, const Spot& spot, const int64_t* tables) {
  const int64_t at = spot.lane * operand.lane_stride + along(operand.slice, spot.slice, tables) +
                     along(operand.element, spot.element, tables);
  return reinterpret_cast<char*>(operand.base) + at * (operand.is_wide ? 8 : 4);
}

// ---- inputs -------------------------------------------------------------------------------------

// The sum of N operands' entries for a term.
template <int N>
struct Inputs {
  const char* at[N];
  int64_t stride[N];  // in bytes
  const int64_t* table[N];
  bool is_wide[N];

  SUMPROD_DEVICE Inputs(const DeviceOperand* operand, int, const Spot& spot, const int64_t* tables) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      at[i] = place(operand[i], spot, tables);
      is_wide[i] = operand[i].is_wide != 0;
      table[i] = operand[i].term.table < 0 ? nullptr : tables + operand[i].term.table;
      stride[i] = (table[i] == nullptr ? operand[i].term.stride : 1) * (is_wide[i] ? 8 : 4);
    }
  }
  SUMPROD_DEVICE double operator()(int64_t term) const {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const double x = entry(at[i] + (table[i] == nullptr ? term : table[i][term]) * stride[i], is_wide[i]);
      sum = i == 0 ? x : sum + x;
    }
    return sum;
  }
};

// The same for any number, found anew for each term.
template <>
struct Inputs<0> {
  const DeviceOperand* operand;
  int count;
  const Spot& spot;
  const int64_t* tables;

  SUMPROD_DEVICE Inputs(const DeviceOperand* first, int number, const Spot& own, const int64_t* all)
      : operand(first), count(number), spot(own), tables(all) {}
  SUMPROD_DEVICE double operator()(int64_t term) const {
    double sum = 0;
    for (int i = 0; i < count; ++i) {
      const DeviceOperand& one = operand[i];
      sum += entry(place(one, spot, tables) + along(one.term, term, tables) * (one.is_wide ? 8 : 4), one.is_wide != 0);
    }
    return sum;
  }
};

// Calls f with the inputs that vary with the term.
template <class F>
SUMPROD_DEVICE void with_inputs(const DeviceOp& op, const DeviceOperand* first, const Spot& spot, const int64_t* tables,
                                F f) {
  if (op.inner == 1) {
    f(Inputs<1>(first, 1, spot, tables));
  } else if (op.inner == 2) {
    f(Inputs<2>(first, 2, spot, tables));
  } else {
    f(Inputs<0>(first, op.inner, spot, tables));
  }
}

// The sum of the inputs that do not vary.
SUMPROD_DEVICE double constant_of(const DeviceOp& op, const DeviceOperand* first, const Spot& spot,
                                  const int64_t* tables) {
  return Inputs<0>(first + op.inner, spot.active ? op.inputs - op.inner : 0, spot, tables)(0);
}

// ---- reductions over the threads that share an output -------------------------------------------

SUMPROD_DEVICE double sum_of_members(double x, int members) {
  for (int d = kWarp / members; d < kWarp; d *= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}
SUMPROD_DEVICE double most_of_members(double x, int members) {
  for (int d = kWarp / members; d < kWarp; d *= 2) {
    const double y = __shfl_xor_sync(kFullWarp, x, d);
    x = y > x ? y : x;
  }
  return x;
}

// The sum over terms of x(term).
template <class X>
SUMPROD_DEVICE double summed(const TermRange& terms, const Spot& spot, X x) {
  double sum = 0;
  int64_t t = terms.first + spot.member;
  for (; t + (kUnrolled - 1) * spot.members < terms.end; t += kUnrolled * spot.members) {
    double value[kUnrolled];
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) value[k] = x(t + k * spot.members);
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) sum += value[k];
  }
  for (; t < terms.end; t += spot.members) sum += x(t);
  return sum_of_members(sum, spot.members);
}

// The log of the sum over terms of exp(x(term)), in one pass: the sum is over the largest so far.
template <class Real, class X>
SUMPROD_DEVICE double log_sum(const TermRange& terms, const Spot& spot, X x) {
  double top = -kInfinity, sum = 0;
  for (int64_t t = terms.first + spot.member; t < terms.end; t += kUnrolled * spot.members) {
    double value[kUnrolled], most = top;
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) {
      const int64_t term = t + k * spot.members;
      value[k] = term < terms.end ? x(term) : -kInfinity;
    }
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) most = value[k] > most ? value[k] : most;
    if (most > top) {
      sum *= exp_of<Real>(top - most);
      top = most;
    }
    const double base = top > -kInfinity ? top : 0;
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) sum += exp_of<Real>(value[k] - base);
  }
  const double most = most_of_members(top, spot.members), base = most > -kInfinity ? most : 0;
  sum = sum_of_members(spot.members == 1 ? sum : sum * exp_of<Real>(top - base), spot.members);
  return base + log(sum);
}

// The largest x(term), or NaN where one is.
template <class X>
SUMPROD_DEVICE double largest(const TermRange& terms, const Spot& spot, X x) {
  double top = -kInfinity, nan = 0;
  for (int64_t t = terms.first + spot.member; t < terms.end; t += spot.members) {
    const double value = x(t);
    nan = value == value ? nan : value;
    top = value > top ? value : top;
  }
  return most_of_members(top, spot.members) + sum_of_members(nan, spot.members);
}

// ---- operations ---------------------------------------------------------------------------------

SUMPROD_DEVICE void store(const DeviceOp& op, const DeviceOperand& target, const Spot& spot, const int64_t* tables,
                          double value) {
  if (!spot.active || spot.member != 0) return;
  char* p = place(target, spot, tables) + along(target.term, spot.chunk, tables) * (target.is_wide ? 8 : 4);
  if (op.adds) value += entry(p, target.is_wide != 0);
  if (target.is_wide) {
    *reinterpret_cast<double*>(p) = value;
  } else {
    *reinterpret_cast<float*>(p) = float(value);
  }
}

template <class Real>
SUMPROD_DEVICE double reduced(const DeviceOp& op, const DeviceOperand* operand, const Spot& spot,
                              const int64_t* tables) {
  const TermRange terms = terms_of(op, spot);
  double result = 0;
  if (op.kind == DeviceKind::share || op.kind == DeviceKind::pass) {
    const Inputs<1> grad(operand + 1, 1, spot, tables), out(operand + 2, 1, spot, tables);
    if (op.kind == DeviceKind::pass) {
      return summed(terms, spot, [&](int64_t t) { return out(t) == -kInfinity ? 0.0 : grad(t); });
    }
    const double constant = constant_of(op, operand + 3, spot, tables);
    with_inputs(op, operand + 3, spot, tables, [&](const auto& inputs) {
      result = summed(terms, spot, [&](int64_t t) {
        const double total = out(t);
        return total == -kInfinity ? 0.0 : grad(t) * exp_of<Real>(constant + inputs(t) - total);
      });
    });
    return result;
  }
  with_inputs(op, operand + 1, spot, tables, [&](const auto& inputs) {
    if (op.kind == DeviceKind::log_sum) {
      result = log_sum<Real>(terms, spot, inputs);
    } else if (op.kind == DeviceKind::largest) {
      result = largest(terms, spot, inputs);
    } else {
      result = summed(terms, spot, inputs);
    }
  });
  if (op.kind == DeviceKind::plates) return result == kInfinity ? result - result : result;
  // Every chunk of terms, if there are several, has the constants.
  return op.inner < op.inputs ? result + constant_of(op, operand + 1, spot, tables) : result;
}

// ---- draws --------------------------------------------------------------------------------------

// The first of the largest terms.
template <class X>
SUMPROD_DEVICE int64_t largest_term(const TermRange& terms, const Spot& spot, X x, double& most) {
  most = -kInfinity;
  int64_t best = terms.end;
  for (int64_t t = terms.first + spot.member; t < terms.end; t += spot.members) {
    const double value = x(t);
    if (value > most || best == terms.end) {
      most = value == value ? value : -kInfinity;
      best = t;
    }
  }
  for (int d = kWarp / spot.members; d < kWarp; d *= 2) {
    const double other = __shfl_xor_sync(kFullWarp, most, d);
    const int64_t its = __shfl_xor_sync(kFullWarp, best, d);
    if (other > most || (other == most && its < best)) {
      most = other;
      best = its;
    }
  }
  return best;
}

// Weights of `members` terms from `first` on, and their running sum from `before` on, which moves on with them.
template <class X>
SUMPROD_DEVICE double running_sum(const TermRange& terms, const Spot& spot, X x, double most, int64_t first,
                                  double& before, double& weight) {
  const int64_t term = first + spot.member;
  weight = term < terms.end ? exp(x(term) - most) : 0.0;
  double sum = weight;
  const int apart = kWarp / spot.members;
  for (int d = 1; d < spot.members; d *= 2) {
    const double left = __shfl_up_sync(kFullWarp, sum, d * apart);
    if (spot.member >= d) sum += left;
  }
  const double so_far = before;
  before += __shfl_sync(kFullWarp, sum, lane_of_thread() % apart + (spot.members - 1) * apart);
  return so_far + sum;
}

// The first term at which the running sum of weights exceeds that share of their total.
template <class X>
SUMPROD_DEVICE int64_t term_at_quantile(const DeviceOp& op, const TermRange& terms, const Spot& spot, X x,
                                        double share) {
  double most = 0, total = 0, weight = 0;
  largest_term(terms, spot, x, most);
  // Lanes with no draw to make take part in what the warp does together.
  for (int64_t t = 0; t < op.terms; t += spot.members) running_sum(terms, spot, x, most, t, total, weight);
  const double target = share * total;
  unsigned own = 0;  // the warp's lanes with the same output
  for (int m = 0; m < spot.members; ++m)
    own |= 1u << (lane_of_thread() % (kWarp / spot.members) + m * (kWarp / spot.members));
  double sum = 0;
  int64_t last = 0, found = -1;  // rounding must not end on an impossible term
  for (int64_t t = 0; t < op.terms; t += spot.members) {
    const double to_here = running_sum(terms, spot, x, most, t, sum, weight);
    const unsigned possible = __ballot_sync(kFullWarp, weight > 0) & own;
    const unsigned reached = __ballot_sync(kFullWarp, weight > 0 && to_here > target) & own;
    if (found < 0 && reached != 0) found = t + (__ffs(int(reached)) - 1) / (kWarp / spot.members);
    if (possible != 0) last = t + (31 - __clz(int(possible))) / (kWarp / spot.members);
    if (__all_sync(kFullWarp, found >= 0)) break;
  }
  return found >= 0 ? found : last;
}

SUMPROD_DEVICE void draw(const DeviceOp& op, const DeviceOperand* operand, Spot& spot, const int64_t* tables) {
  const DeviceOperand* input = operand + 1;
  const DeviceOperand* variable = input + op.inputs;
  const auto value_of = [&](const DeviceOperand& one) {
    const int64_t at = spot.lane * one.lane_stride + along(one.slice, spot.slice, tables);
    return reinterpret_cast<int64_t*>(one.base) + at;
  };
  spot.element = 0;
  for (int v = 0; v < op.given && spot.active; ++v) spot.element += variable[v].element.stride * *value_of(variable[v]);
  const TermRange terms = terms_of(op, spot);
  const Inputs<0> inputs(input, op.inner, spot, tables);
  int64_t term = 0;
  if (op.kind == DeviceKind::choose) {
    double most = 0;
    term = largest_term(terms, spot, inputs, most);
  } else {
    const int64_t at = spot.lane * operand->lane_stride + along(operand->slice, spot.slice, tables);
    const double share = spot.active ? reinterpret_cast<const double*>(operand->base)[at] : 0.0;
    term = term_at_quantile(op, terms, spot, inputs, share);
  }
  if (!spot.active || spot.member != 0) return;
  for (int v = 0; v < op.drawn; ++v) {
    const DeviceOperand& one = variable[op.given + v];
    *value_of(one) = term / one.element.stride % one.term.stride;
  }
}

template <class Real>
SUMPROD_DEVICE void run_task(const DeviceOp& op, const DeviceOperand* operand, int64_t task, int log_group,
                             int lanes_in_group, const int64_t* tables) {
  Spot spot = spot_of(op, task, log_group, lanes_in_group);
  if (op.kind == DeviceKind::draw || op.kind == DeviceKind::choose) {
    draw(op, operand, spot, tables);
  } else {
    store(op, operand[0], spot, tables, reduced<Real>(op, operand, spot, tables));
  }
}

}  // namespace

}  // namespace sumprod
