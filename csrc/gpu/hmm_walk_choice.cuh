// One step of a walk back through kept messages (gpu/hmm_walk.cuh): the choice of a state, given the next one.
#pragma once

#include "gpu/hmm_arithmetic.cuh"
#include "gpu/hmm_walk.h"

namespace sumprod::gpu {

// Steps of one path.
template <class Real>
struct Stretch {
  const Real* columns;   // of the sequence's matrix
  const Real* messages;  // of step 0 of the sequence, like the next two
  const Real* uniforms;  // null for the best path
  int64_t* path;         // null when only the state of the first step is wanted
  int first, count;      // steps first .. first + count - 1
  int next;              // the state after them; `states` for none
};

template <class Real, int N>
struct alignas(N * sizeof(Real) < 16 ? N * sizeof(Real) : 16) Pack {
  Real x[N];
};

// Entries that are read at once.
template <class Real, int N>
constexpr int kPack = N * int(sizeof(Real)) < 16 ? N : 16 / int(sizeof(Real));

// ---- columns --------------------------------------------------------------------------------------

// A matrix as walks read it, made once per call. Row z has the weights into state z from all states, linear ones
// relative to the largest of the row; row `states` has weights of one, for a choice without a next state. Entries past
// the states are zeros of the semiring, whatever messages have there. Rows for ThreadChoice begin in different banks.
constexpr int64_t kMostThreadStates = 16, kMostWarpStates = 128;
constexpr int kBlockWalkEntries = 4;  // per thread, for more states than that

template <class Real>
SUMPROD_BOTH int walk_row(int64_t states) {
  if (states <= kMostThreadStates) return (states <= 8 ? 8 : 16) + 16 / int(sizeof(Real));
  if (states > kMostWarpStates) return int((states + kMostWarpStates - 1) / kMostWarpStates * kMostWarpStates);
  int row = kWarp;
  while (row < states) row *= 2;
  return row;
}

template <class Real>
SUMPROD_BOTH int64_t walk_matrix(int64_t states) {
  return (states + 1) * walk_row<Real>(states);
}

template <class A>
__global__ void walk_columns_kernel(HmmProblem p, int64_t matrices, typename A::Real* columns) {
  using Real = typename A::Real;
  const int warps = int(blockDim.x) / kWarp, row = walk_row<Real>(p.states);
  const int64_t line = int64_t(blockIdx.x) * warps + warp_of_thread();
  const int64_t sequence = line / (p.states + 1), z = line % (p.states + 1);
  if (sequence >= matrices) return;
  const Real* from = static_cast<const Real*>(p.transition) + sequence * p.transition_batch + z * p.transition_to;
  const bool any = z < p.states && p.steps > 1;
  Real top = -infinity<Real>();
  if (any && !A::kMaxPlus) {
    for (int64_t i = lane_of_thread(); i < p.states; i += kWarp) {
      const Real x = from[i * p.transition_from];
      top = x > top ? x : top;
    }
  }
  top = warp_max(top);
  if (top == -infinity<Real>()) top = Real(0);
  for (int64_t i = lane_of_thread(); i < row; i += kWarp) {
    Real weight = A::zero();
    if (any && i < p.states) weight = A::weight(from[i * p.transition_from], top);
    if (z == p.states && i < p.states) weight = A::one();
    columns[line * row + i] = weight + Real(0);  // no -0, so that sums compare as keys do
  }
}

template <class A>
void make_walk_columns(const HmmProblem& problem, void* columns, const Stream& stream) {
  constexpr int kThreads = 128, kWarps = kThreads / kWarp;
  const int64_t matrices = walk_matrices(problem), lines = matrices * (problem.states + 1);
  launch(walk_columns_kernel<A>, LaunchShape{(lines + kWarps - 1) / kWarps, kThreads}, stream, problem, matrices,
         static_cast<typename A::Real*>(columns));
}

// ---- choices --------------------------------------------------------------------------------------

// The number below a positive x.
SUMPROD_DEVICE float below(float x) { return __int_as_float(__float_as_int(x) - 1); }
SUMPROD_DEVICE double below(double x) { return __longlong_as_double(__double_as_longlong(x) - 1); }

template <class A>
SUMPROD_DEVICE typename A::Real walk_weight(typename A::Real message, typename A::Real column) {
  if constexpr (A::kMaxPlus) {
    return message + column;
  } else {
    return message * column;
  }
}

// Rows of messages begin where a whole pack can be read.
template <class Real>
SUMPROD_BOTH int walk_message_entries(int64_t states) {
  if (states <= kMostThreadStates) return states <= 8 ? 8 : 16;
  const int each = states > kMostWarpStates ? kBlockWalkEntries : walk_row<Real>(states) / kWarp;
  const int multiple = each < 4 ? 4 : each;
  return int(states + multiple - 1) / multiple * multiple;
}

template <class Real, int N>
SUMPROD_DEVICE void load_message(const Real* entries, Real (&m)[N]) {
  constexpr int P = kPack<Real, N>;
#pragma unroll
  for (int k = 0; k < N; k += P) {
    const Pack<Real, P> pack = *reinterpret_cast<const Pack<Real, P>*>(entries + k);
#pragma unroll
    for (int i = 0; i < P; ++i) m[k + i] = pack.x[i];
  }
}

template <class A, int N>
SUMPROD_DEVICE void weigh(const typename A::Real (&m)[N], const typename A::Real* column, typename A::Real (&w)[N]) {
  using Real = typename A::Real;
  constexpr int P = kPack<Real, N>;
#pragma unroll
  for (int k = 0; k < N; k += P) {
    const Pack<Real, P> pack = *reinterpret_cast<const Pack<Real, P>*>(column + k);
#pragma unroll
    for (int i = 0; i < P; ++i) w[k + i] = walk_weight<A>(m[k + i], pack.x[i]);
  }
}

// The largest of w, left in w[0], and its index, in index[0]; the lowest of several. Neighbours are compared first.
template <int Apart, class Real, int N>
SUMPROD_DEVICE void reduce_to_best(Real (&w)[N], int (&index)[N]) {
  if constexpr (Apart < N) {
#pragma unroll
    for (int i = 0; i < N; i += 2 * Apart) {
      const bool right = w[i + Apart] > w[i];
      w[i] = right ? w[i + Apart] : w[i];
      index[i] = right ? index[i + Apart] : index[i];
    }
    reduce_to_best<2 * Apart>(w, index);
  }
}
template <class Real, int N>
SUMPROD_DEVICE int best_of(Real (&w)[N]) {
  int index[N];
#pragma unroll
  for (int i = 0; i < N; ++i) index[i] = i;
  reduce_to_best<1>(w, index);
  return index[0];
}

// Sums w[0] + .. + w[k], in fours so that the chain is short. They never decrease, and stay where a weight is 0.
template <class Real, int N>
SUMPROD_DEVICE void accumulate_weights(Real (&w)[N]) {
#pragma unroll
  for (int k = 1; k < N; ++k) {
    if (k % 4 != 0) w[k] += w[k - 1];
  }
#pragma unroll
  for (int k = 4; k < N; ++k) w[k] += w[k / 4 * 4 - 1];
}

// Steps of a tile: messages are read a tile ahead, as far as registers allow.
template <class Real, int N>
constexpr int kWalkTile = N <= (sizeof(Real) == 4 ? 8 : 2) ? 8 : (N * int(sizeof(Real)) <= 64 ? 4 : 2);

template <class A_, int States>
class ThreadChoice {
 public:
  using A = A_;
  using Real = typename A::Real;
  static constexpr int kEntries = States, kTile = kWalkTile<Real, States>;

  SUMPROD_DEVICE explicit ThreadChoice(int states) : states_(states) {}
  SUMPROD_DEVICE void use(const Real* columns) { columns_ = columns; }
  SUMPROD_DEVICE int first_read(int) const { return 0; }

  SUMPROD_DEVICE int choose(const Real (&message)[States], Real uniform, int next) const {
    Real w[States];
    weigh<A>(message, columns_ + next * kRow, w);
    if constexpr (A::kMaxPlus) return best_of(w);
    accumulate_weights(w);
    const Real total = w[States - 1];
    const Real product = uniform * total, most = below(total);
    const Real threshold = product < most ? product : most;
    int state = 0;
#pragma unroll
    for (int i = 0; i < States; ++i) state += int(w[i] <= threshold);
    return state < states_ ? state : states_ - 1;
  }

  // States of one tile of steps, `done` steps from the end of the stretch on.
  SUMPROD_DEVICE void begin_tile(int) {}
  SUMPROD_DEVICE void note(int k, int state) { noted_[k] = state; }
  template <bool kWhole>
  SUMPROD_DEVICE void end_tile(int64_t* last, int done, int count) const {
    if (last == nullptr) return;
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      if (kWhole || done + k < count) last[-int64_t(done) - k] = noted_[k];
    }
  }

 private:
  static constexpr int kRow = States + 16 / int(sizeof(Real));
  const Real* columns_ = nullptr;
  const int states_;
  int noted_[kTile];
};

template <class A_, int PerLane, int Tile = kWalkTile<typename A_::Real, PerLane>>
class WarpChoice {
 public:
  using A = A_;
  using Real = typename A::Real;
  static constexpr int kEntries = PerLane, kTile = Tile;

  SUMPROD_DEVICE explicit WarpChoice(int) : lane_(lane_of_thread()) {}
  SUMPROD_DEVICE void use(const Real* columns) { columns_ = columns + first_entry(); }
  SUMPROD_DEVICE int first_entry() const { return lane_ * PerLane; }
  // Lanes without states read what others read.
  SUMPROD_DEVICE int first_read(int row) const { return first_entry() < row ? first_entry() : row - PerLane; }

  SUMPROD_DEVICE int choose(const Real (&message)[PerLane], Real uniform, int next) const {
    Real w[PerLane];
    weigh<A>(message, columns_ + next * (kWarp * PerLane), w);
    if constexpr (A::kMaxPlus) {
      return best(w);
    } else {
      return draw(w, uniform);
    }
  }

  // Lanes keep the states of 32 steps, which leave together.
  SUMPROD_DEVICE void begin_tile(int done) { turn_ = (lane_ - done) & (kWarp - 1); }
  SUMPROD_DEVICE void note(int k, int state) { kept_ = turn_ == k ? state : kept_; }
  template <bool kWhole>
  SUMPROD_DEVICE void end_tile(int64_t* last, int done, int count) const {
    const int now = done + kTile, own = done / kWarp * kWarp + lane_;
    if (last == nullptr || (now % kWarp != 0 && now < count)) return;
    if (own < now && own < count) last[-int64_t(own)] = kept_;
  }

 protected:
  using Key = decltype(ordered_key(Real()));
  const Real* columns_ = nullptr;  // from the first entry of this thread on
  static constexpr unsigned kNone = 0xffffffffu;

  SUMPROD_DEVICE int best(Real (&w)[PerLane]) const {
    Key key;
    return int(best(w, &key));
  }
  // The best of the warp's entries, and its key.
  SUMPROD_DEVICE unsigned best(Real (&w)[PerLane], Key* top_key) const {
    const int own = best_of(w);
    const Key key = ordered_key(w[0]);
    *top_key = top_of_warp(key);
    return lowest(key == *top_key ? unsigned(first_entry() + own) : kNone);
  }

  SUMPROD_DEVICE int draw(Real (&w)[PerLane], Real uniform) const {
    const Weights sums(*this, w);
    const unsigned state = sums.first_above(*this, w, Real(0), uniform * sums.total());
    return int(state == kNone ? last_of(sums.positive) : state);
  }

  // What a draw must know of a warp's weights, of which it makes sums up to each in its lane.
  struct Weights {
    SUMPROD_DEVICE Weights(const WarpChoice& choice, Real (&w)[PerLane]) {
#pragma unroll
      for (int k = 0; k < PerLane; ++k) positive[k] = w[k] > Real(0);
      accumulate_weights(w);
      through = choice.sum_of_lanes(w[PerLane - 1]);
    }
    SUMPROD_DEVICE Real total() const { return __shfl_sync(kFullWarp, through, kWarp - 1); }
    // The first entry that takes the sum, from `base` on, above the threshold, or kNone. Sums of different lanes round
    // differently, so a sum above the threshold is not enough.
    SUMPROD_DEVICE unsigned first_above(const WarpChoice& choice, const Real (&w)[PerLane], Real base,
                                        Real threshold) const {
      const Real before = __shfl_up_sync(kFullWarp, through, 1);
      base += choice.lane_ == 0 ? Real(0) : before;
      unsigned state = kNone;
#pragma unroll
      for (int k = PerLane - 1; k >= 0; --k) {
        if (positive[k] && base + w[k] > threshold) state = unsigned(choice.first_entry() + k);
      }
      return choice.lowest(state);
    }
    bool positive[PerLane];
    Real through;  // the sum of this lane and those before
  };

  // The lowest of the lanes' states.
  SUMPROD_DEVICE unsigned lowest(unsigned state) const {
    if constexpr (PerLane == 1) {
      return unsigned(__ffs(int(__ballot_sync(kFullWarp, state != kNone)))) - 1u;  // kNone if there is none
    } else {
      return __reduce_min_sync(kFullWarp, state);
    }
  }

  // Over this lane and those before, four at a time: three shuffles side by side take less time than two after
  // each other.
  SUMPROD_DEVICE Real sum_of_lanes(Real x) const {
#pragma unroll
    for (int d = 1; d < 16; d *= 4) {
      const Real a = __shfl_up_sync(kFullWarp, x, d), b = __shfl_up_sync(kFullWarp, x, 2 * d),
                 c = __shfl_up_sync(kFullWarp, x, 3 * d);
      x = (x + (lane_ >= d ? a : Real(0))) + ((lane_ >= 2 * d ? b : Real(0)) + (lane_ >= 3 * d ? c : Real(0)));
    }
    const Real a = __shfl_up_sync(kFullWarp, x, 16);
    return x + (lane_ >= 16 ? a : Real(0));
  }

  // The last state of positive weight: the threshold has been rounded up to the total.
  SUMPROD_DEVICE unsigned last_of(const bool (&positive)[PerLane]) const {
    unsigned state = 0;
#pragma unroll
    for (int k = 0; k < PerLane; ++k) state = positive[k] ? unsigned(first_entry() + k) : state;
    return __reduce_max_sync(kFullWarp, state);
  }

  const int lane_;
  int turn_ = 0, kept_ = 0;
};

}  // namespace sumprod::gpu
