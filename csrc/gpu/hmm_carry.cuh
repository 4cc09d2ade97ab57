// Phase 2 of gpu/hmm_pieces.h: messages carried through transfer matrices, in double precision.
#pragma once

#include "gpu/hmm_arithmetic.cuh"
#include "gpu/hmm_length.cuh"
#include "gpu/hmm_pieces.h"

namespace sumprod::gpu {

// Carries messages through the places of every range.
struct CarryTask {
  HmmProblem problem;
  HmmTransfers from;
  int64_t place_steps;    // of the sequence, per place
  int64_t range, ranges;  // places per range; ranges per sequence
  bool backward;          // also the backward messages, where there are starts
  HmmTransfers into;      // the matrices of whole ranges; or null
  HmmStarts given;        // at every range; null with one range
  HmmStarts starts;       // at every place, to be filled; or null
  bool decides;           // whether the end is the total of the sequence
  void* total;            // may be null all the same
  uint8_t* redo;          // sequences marked here before are left alone
  const uint8_t* watched;

  SUMPROD_BOTH bool products() const { return into.matrix != nullptr; }
};

// Sums over paths: numbers are themselves, orders are binary exponents.
struct CarryLinear {
  static constexpr double kLeast = -1000.0;  // orders below are taken for lost

  static SUMPROD_DEVICE double zero() { return 0.0; }
  static SUMPROD_DEVICE double one() { return 1.0; }
  static SUMPROD_DEVICE double accumulate(double sum, double x, double y) { return sum + x * y; }
  static SUMPROD_DEVICE double merge(double a, double b) { return a + b; }
  static SUMPROD_DEVICE bool is_ordinary(double x) { return x > 0.0 && x < infinity<double>(); }
  static SUMPROD_DEVICE double order(double x) {
    if (!is_ordinary(x)) return -infinity<double>();
    return double(int((unsigned long long)(__double_as_longlong(x)) >> 52) - 1023);
  }
  // x * 2^by, or 0 where that is lost. Not for results above about 1.
  static SUMPROD_DEVICE double shifted(double x, double by, bool& lost) {
    if (!is_ordinary(x)) return x;
    const double own = order(x), sum = own + by;
    if (own < kLeast || sum < kLeast) {
      lost = true;
      return 0.0;
    }
    return x * power_of_two(-int(own), double()) * power_of_two(int(sum), double());
  }
  static SUMPROD_DEVICE bool loses(double x, double y) { return x > 0.0 && y > 0.0 && x * y < 0x1p-1000; }
  static SUMPROD_DEVICE double log_of(double x, double order) { return log(x) + order * kLn2; }
};

// The best path: numbers and orders are logs.
struct CarryMaxPlus {
  static SUMPROD_DEVICE double zero() { return -infinity<double>(); }
  static SUMPROD_DEVICE double one() { return 0.0; }
  static SUMPROD_DEVICE double accumulate(double best, double x, double y) { return larger(best, x + y); }
  static SUMPROD_DEVICE double merge(double a, double b) { return larger(a, b); }
  static SUMPROD_DEVICE double order(double x) { return x; }
  static SUMPROD_DEVICE double shifted(double x, double by, bool&) { return x == zero() ? x : x + by; }
  static SUMPROD_DEVICE bool loses(double, double) { return false; }
  static SUMPROD_DEVICE double log_of(double x, double order) { return x + order; }
};

// One block carries the messages of one range in one direction: one message, or, for products, some of those that
// start from one state each. A group of `width` lanes holds a message; lane l has the states l, l + width, ...
template <class A>
class Carry {
 public:
  static constexpr int kMostStates = 64, kThreads = 256;
  static constexpr int kOwn = kMostStates / kWarp;  // states of a lane
  static constexpr int64_t kTileBytes = 32 * 1024;  // of matrices in shared memory at a time, if one is not more

  static SUMPROD_BOTH int width_for(int64_t states) { return states <= 8 ? 8 : (states <= 16 ? 16 : kWarp); }

  struct Shared {
    int tile;        // places
    double* matrix;  // [place of the tile][state][state + 1]: rows as well as columns are read side by side
    double* order;   // [place of the tile][state]
    double* weight;  // [group][state]
    int64_t bytes;
    SUMPROD_BOTH Shared(unsigned char* base, int64_t states, int groups) {
      const int64_t one = states * (states + 2) * int64_t(sizeof(double));
      tile = one < kTileBytes ? int(kTileBytes / one) : 1;
      SharedArena arena(base);
      matrix = arena.take<double>(tile * states * (states + 1));
      order = arena.take<double>(tile * states);
      weight = arena.take<double>(groups * states);
      bytes = arena.used();
    }
  };

  // Blocks of rows that the messages of a range are divided among.
  static SUMPROD_BOTH int64_t row_blocks(const CarryTask& task) {
    const int groups = kThreads / width_for(task.problem.states);
    return task.products() ? (task.problem.states + groups - 1) / groups : 1;
  }
  static SUMPROD_BOTH int threads(const CarryTask& task) { return task.products() ? kThreads : kWarp; }
  static SUMPROD_BOTH int64_t blocks(const CarryTask& task) {
    const bool both = task.backward && task.starts.forward != nullptr;
    return task.problem.batch * task.ranges * row_blocks(task) * (both ? 2 : 1);
  }

  SUMPROD_DEVICE explicit Carry(const CarryTask& task)
      : task_(task),
        states_(int(task.problem.states)),
        width_(width_for(states_)),
        shared_(shared_memory(), states_, threads(task) / width_),
        lane_(int(threadIdx.x) % width_) {
    const int group = int(threadIdx.x) / width_;
    int64_t block = blockIdx.x;
    row_ = int(block % row_blocks(task)) * (threads(task) / width_) + group;
    block /= row_blocks(task);
    range_ = block % task.ranges;
    block /= task.ranges;
    sequence_ = block % task.problem.batch;
    backward_ = block >= task.problem.batch;
    weight_ = shared_.weight + group * states_;
    places_ = (length_on_device(task.problem, sequence_) + task.place_steps - 1) / task.place_steps;
    first_ = range_ * task.range;
    end_ = first_ + task.range < places_ ? first_ + task.range : places_;
    leads_ = task.products() ? row_ < states_ && (range_ > 0 || row_ == 0) : group == 0;
    watched_ = places_ > 1 && task.watched[sequence_] != 0;
  }

  SUMPROD_DEVICE void run() {
    // Other blocks may mark the sequence in the meantime, so that one thread asks for all.
    if (__syncthreads_or(threadIdx.x == 0 && flag_raised(task_.redo + sequence_))) return;
    if (first_ < end_) {
      start();
      // From the initial potential, place 0 is a message already.
      const int64_t begin = !backward_ && first_ == 0 ? 1 : first_;
      for (int64_t k = 0; k < end_ - begin; k += shared_.tile) {
        const int64_t rest = end_ - begin - k;
        const int count = int(rest < shared_.tile ? rest : shared_.tile);
        const int64_t lowest = backward_ ? end_ - k - count : begin + k;
        load_tile(lowest, count);
        for (int n = 0; n < count; ++n) {
          if (backward_) {
            step_backward(lowest, count - 1 - n);
          } else {
            step_forward(lowest, n);
          }
        }
      }
    }
    finish();
  }

 private:
  SUMPROD_DEVICE int64_t at(int64_t place) const { return sequence_ * task_.from.count + place; }

  template <class F>
  SUMPROD_DEVICE void each_state(F f) const {
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int s = lane_ + k * width_;
      if (s < states_) f(s, k);
    }
  }

  SUMPROD_DEVICE void start() {
    const int64_t given = sequence_ * task_.ranges + range_;
    each_state([&](int s, int k) {
      double x = A::one();
      if (backward_) {
        if (end_ < places_) x = task_.given.backward[given * states_ + s];
      } else if (first_ == 0) {
        x = task_.from.matrix[at(0) * states_ * states_ + s];
      } else if (task_.products()) {
        x = s == row_ ? A::one() : A::zero();
      } else {
        x = task_.given.forward[given * states_ + s];
      }
      message_[k] = x;
    });
    if (backward_) return;
    if (first_ == 0) {
      order_ = task_.from.order[at(0) * states_];
      log_ = task_.from.log[at(0)];
    } else if (!task_.products()) {
      order_ = task_.given.order[given];
    }
  }

  SUMPROD_DEVICE void load_tile(int64_t lowest, int count) {
    __syncthreads();
    const double* matrix = task_.from.matrix + at(lowest) * states_ * states_;
    for (int k = int(threadIdx.x); k < count * states_ * states_; k += int(blockDim.x)) {
      shared_.matrix[k / states_ * (states_ + 1) + k % states_] = matrix[k];
    }
    const double* order = task_.from.order + at(lowest) * states_;
    for (int k = int(threadIdx.x); k < count * states_; k += int(blockDim.x)) shared_.order[k] = order[k];
    __syncthreads();
  }

  SUMPROD_DEVICE double top_order(const double (&pending)[kOwn]) const {
    double top = -infinity<double>();
    each_state([&](int, int k) {
      const double x = A::order(message_[k]) + pending[k];
      top = x > top ? x : top;
    });
    return warp_max(top, width_);
  }

  // Leaves the message, each state times 2^pending, in weight_, with the best state about 1, and adds to `order` what
  // has been taken out.
  SUMPROD_DEVICE void spread(const double (&pending)[kOwn], double& order) {
    const double top = top_order(pending);
    __syncwarp();
    each_state([&](int s, int k) { weight_[s] = A::shifted(message_[k], pending[k] - top, lost_); });
    __syncwarp();
    if (top > -infinity<double>()) order += top;
  }

  SUMPROD_DEVICE void store(double* start, int64_t place) const {
    if (leads_) each_state([&](int s, int) { start[at(place) * states_ + s] = weight_[s]; });
  }

  // sum over k of weight_[k] * matrix[k * stride], for states of this lane `step` apart.
  SUMPROD_DEVICE void multiply(const double* matrix, int stride, int step) {
    each_state([&](int s, int k) {
      const double* entry = matrix + s * step;
      double even = A::zero(), odd = A::zero();
#pragma unroll 4
      for (int i = 0; i < states_; ++i) {
        const double w = weight_[i], m = entry[i * stride];
        if (watched_ && A::loses(w, m)) lost_ = true;
        double& sum = (i & 1) != 0 ? odd : even;
        sum = A::accumulate(sum, w, m);
      }
      message_[k] = A::merge(even, odd);
    });
  }

  SUMPROD_DEVICE void step_forward(int64_t lowest, int n) {
    const double none[kOwn] = {};
    if (task_.starts.forward != nullptr) {
      double order = order_;
      spread(none, order);
      store(task_.starts.forward, lowest + n);
      if (leads_ && lane_ == 0) task_.starts.order[at(lowest + n)] = order;
    }
    double pending[kOwn] = {};
    each_state([&](int s, int k) { pending[k] = shared_.order[n * states_ + s]; });
    spread(pending, order_);
    multiply(shared_.matrix + n * states_ * (states_ + 1), states_ + 1, 1);
    log_ += task_.from.log[at(lowest + n)];
  }

  // Backward messages need no order: every row of them has a scale of its own.
  SUMPROD_DEVICE void step_backward(int64_t lowest, int n) {
    spread(pending_, order_);
    store(task_.starts.backward, lowest + n);
    if (lowest + n == 0) return;  // place 0 has no matrix
    multiply(shared_.matrix + n * states_ * (states_ + 1), 1, states_ + 1);
    each_state([&](int s, int k) { pending_[k] = shared_.order[n * states_ + s]; });
  }

  SUMPROD_DEVICE void finish() {
    const double none[kOwn] = {};
    const bool any = first_ < end_;
    if (any && task_.products()) {
      spread(none, order_);
      const int64_t place = sequence_ * task_.ranges + range_;
      if (leads_) {
        each_state([&](int s, int) { task_.into.matrix[(place * states_ + row_) * states_ + s] = weight_[s]; });
        if (lane_ == 0) task_.into.order[place * states_ + row_] = order_;
        if (lane_ == 0 && row_ == 0) task_.into.log[place] = log_;
      }
    }
    double total = A::zero();
    each_state([&](int, int k) { total = A::merge(total, message_[k]); });
    for (int d = width_ / 2; d > 0; d /= 2) total = A::merge(total, __shfl_xor_sync(kFullWarp, total, d));
    const bool lost = __any_sync(kFullWarp, any && leads_ && watched_ && lost_);
    if (lost && lane_ == 0) raise_flag(task_.redo + sequence_);
    if (!task_.decides || backward_ || threadIdx.x != 0) return;
    const double value = any ? A::log_of(total, order_) + log_ : 0.0;  // without steps, one path of weight 1
    if (!(value - value == 0.0)) {
      raise_flag(task_.redo + sequence_);
    } else if (task_.total != nullptr && task_.problem.is_double) {
      static_cast<double*>(task_.total)[sequence_] = value;
    } else if (task_.total != nullptr) {
      static_cast<float*>(task_.total)[sequence_] = float(value);
    }
  }

  const CarryTask& task_;
  const int states_, width_;
  const Shared shared_;
  const int lane_;
  int row_;
  int64_t range_, sequence_, places_, first_, end_;  // places of the sequence, and of this range
  bool backward_, leads_, watched_;                  // leads_: what this group has is to be stored
  bool lost_ = false;
  double* weight_;
  double message_[kOwn] = {}, pending_[kOwn] = {};
  double order_ = 0.0, log_ = 0.0;  // the message stands for message * 2^order * exp(log)
};

template <class A>
__global__ void __launch_bounds__(Carry<A>::kThreads) carry_kernel(CarryTask task) {
  Carry<A>(task).run();
}

template <class A>
void launch_carry(const CarryTask& task, const Stream& stream) {
  using C = Carry<A>;
  const int threads = C::threads(task), groups = threads / C::width_for(task.problem.states);
  const LaunchShape shape{C::blocks(task), threads, typename C::Shared(nullptr, task.problem.states, groups).bytes};
  launch(carry_kernel<A>, shape, stream, task);
}

}  // namespace sumprod::gpu
