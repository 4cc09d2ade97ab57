// Emissions and results in message form, a window of steps at a time.
#pragma once

#include "core/hmm_lanes.h"

namespace {

// A window of lane steps held in message form, filled from (or emptied into) one strided array
// indexed [sequence, time, state]. Steps without a sequence read as 0 and are never written.
template <class Layout, class External>
class Tile {
 public:
  using Real = typename Layout::Real;
  static constexpr int W = Layout::W;

  Tile(Arena& arena, const Lanes<Layout>& lanes, int64_t states)
      : lanes_(lanes), states_(states), vectors_(Layout::vectors(states)) {
    steps_ = larger(1, kTileBytes / (vectors_ * W * int64_t(sizeof(Real))));
    const int64_t whole = W;  // a multiple of W steps always fills whole registers
    if (steps_ > whole) steps_ -= steps_ % whole;
    steps_ = smaller(steps_, larger(1, lanes.steps));
    data_ = arena.take<Real>(round_up(steps_ * vectors_, W) * W);
    parts_ = arena.take<Real>(Layout::kLanes * W);
  }

  void bind(External* base, int64_t sequence_stride, int64_t time_stride, int64_t state_stride) {
    base_ = base;
    sequence_stride_ = sequence_stride;
    time_stride_ = time_stride;
    state_stride_ = state_stride;
    for (int l = 0; l < Layout::kLanes; ++l) segment_[l] = lanes_.first(l);
    begin_ = end_ = run_begin_ = run_end_ = 0;
  }

  // The message of step t; reads the window around t when it is not the current one.
  SUMPROD_INLINE Real* read(int64_t t) {
    if (t < begin_ || t >= end_) {
      place(t);
      fill();
    }
    return data_ + (t - begin_) * vectors_ * W;
  }

  // Room for the message of step t; windows are written back as the caller moves on.
  SUMPROD_INLINE Real* write(int64_t t) {
    if (t < begin_ || t >= end_) {
      flush();
      place(t);
    }
    return data_ + (t - begin_) * vectors_ * W;
  }

  void flush();

 private:
  // A stretch of steps of one lane, inside one segment or outside all.
  struct Piece {
    int64_t segment;  // -1 outside
    int64_t begin, end;
  };
  // Where a lane's whole registers are: register k at `at + (k & keep)`, for k from run_begin_ to
  // before run_end_.
  struct Run {
    External* at;
    int64_t keep;  // -1 for a stream, 0 when one register serves all
    bool split;    // that register is made of parts of segments
  };

  void place(int64_t t) {
    begin_ = t / steps_ * steps_;
    end_ = smaller(begin_ + steps_, lanes_.steps);
  }
  bool is_flat() const { return sizeof(External) == sizeof(Real) && state_stride_ == 1 && time_stride_ == states_; }

  Piece piece(int l, int64_t t) {
    if (lanes_.first(l) == lanes_.first(l + 1)) return {-1, 0, lanes_.steps};
    const int64_t k = segment_[l] = lanes_.find(l, t, segment_[l]);
    if (t < lanes_.end(k)) return {k, lanes_.start(k), lanes_.end(k)};
    return {-1, lanes_.end(k), k + 1 < lanes_.first(l + 1) ? lanes_.start(k + 1) : lanes_.steps};
  }
  External* row(int64_t segment, int64_t t) const {
    return base_ + lanes_.sequence(segment) * sequence_stride_ + (t - lanes_.start(segment)) * time_stride_;
  }

  void fill();
  void fill_flat();
  void flush_flat();
  void find_runs(int64_t k);
  void split_runs(int64_t k);
  template <class Offset>
  int64_t fill_registers(int64_t k, int64_t end, Offset offset);
  template <class Offset>
  int64_t flush_registers(int64_t k, int64_t end, Offset offset);
  template <class Copy>
  void for_each_part(int l, int64_t k, int64_t limit, Copy copy);

  const Lanes<Layout>& lanes_;
  const int64_t states_, vectors_;
  int64_t steps_;
  External* base_ = nullptr;
  int64_t sequence_stride_ = 0, time_stride_ = 0, state_stride_ = 0;
  int64_t begin_ = 0, end_ = 0;
  int64_t segment_[Layout::kLanes];  // a hint
  Real *data_, *parts_;              // parts_: one register per lane, for runs that are no stream
  Run run_[Layout::kLanes];
  int64_t run_begin_ = 0, run_end_ = 0;
  bool streams_ = false;  // no lane goes through parts_
};

// Contiguous rows are one stream of numbers per sequence: take W of them from each of W lanes and
// transpose, whatever the number of states. Sets run_ for the register at number k of the streams.
template <class Layout, class External>
void Tile<Layout, External>::find_runs(int64_t k) {
  const int64_t t = k / states_, all = lanes_.steps * states_;
  run_begin_ = 0;
  run_end_ = all;
  streams_ = true;
  for (int l = 0; l < Layout::kLanes; ++l) {
    const Piece here = piece(l, t);
    const int64_t begin = here.begin * states_,
                  end = here.end < lanes_.steps || here.segment >= 0 ? here.end * states_ : all + W;
    run_[l] = {reinterpret_cast<External*>(parts_ + l * W), 0, k + W > end};
    run_begin_ = larger(run_begin_, run_[l].split ? k : begin);
    run_end_ = smaller(run_end_, run_[l].split ? k + 1 : end - W + 1);
    if (here.segment >= 0 && !run_[l].split) run_[l] = {row(here.segment, here.begin) - begin, -1, false};
    streams_ = streams_ && run_[l].keep != 0;
  }
}

// Makes every lane with a sequence go through parts_, for a register that must not be stored whole.
template <class Layout, class External>
void Tile<Layout, External>::split_runs(int64_t k) {
  find_runs(k);
  for (int l = 0; l < Layout::kLanes; ++l) {
    if (run_[l].keep != 0) run_[l] = {reinterpret_cast<External*>(parts_ + l * W), 0, true};
  }
  streams_ = false;
  run_begin_ = k;
  run_end_ = k + 1;
}

// copy(first place, end, where they are) for the parts of segments in lane l's register.
template <class Layout, class External>
template <class Copy>
void Tile<Layout, External>::for_each_part(int l, int64_t k, int64_t limit, Copy copy) {
  const int64_t last = smaller(k + W, limit);
  for (int64_t at = k; at < last;) {
    const Piece here = piece(l, at / states_);
    const int64_t end = smaller(here.end * states_, last);
    if (here.segment >= 0) {
      const int64_t start = lanes_.start(here.segment);
      copy(at - k, end - k, row(here.segment, start) + (at - start * states_));
    }
    at = end;
  }
}

template <class Layout, class External>
void Tile<Layout, External>::fill_flat() {
  const int64_t first = begin_ * states_, last = end_ * states_, all = lanes_.steps * states_;
  for (int64_t k = first; k < last;) {
    if (k < run_begin_ || k >= run_end_) find_runs(k);
    for (int l = 0; l < Layout::kLanes && !streams_; ++l) {
      if (run_[l].keep != 0) continue;
      Real* part = parts_ + l * W;
      store(part, Vec<Real>{});
      if (!run_[l].split) continue;
      for_each_part(l, k, all, [&](int64_t from, int64_t to, const External* source) {
        for (int64_t i = from; i < to; ++i) part[i] = Real(source[i - from]);
      });
    }
    const int64_t end = smaller(last, run_end_);
    if (streams_) {
      k = fill_registers(k, end, [](int64_t at, int64_t) SUMPROD_INLINE_LAMBDA { return at; });
    } else {
      k = fill_registers(k, end, [](int64_t at, int64_t keep) SUMPROD_INLINE_LAMBDA { return at & keep; });
    }
  }
}

// Registers k, k + W, ... before `end` from the runs; returns where it stopped.
template <class Layout, class External>
template <class Offset>
SUMPROD_INLINE int64_t Tile<Layout, External>::fill_registers(int64_t k, int64_t end, Offset offset) {
  const Real* source[W];
  int64_t keep[W];
  for (int l = 0; l < W; ++l) {
    source[l] = reinterpret_cast<const Real*>(run_[l].at);
    keep[l] = run_[l].keep;
  }
  for (Real* target = data_ + (k - begin_ * states_) * W; k < end; k += W, target += W * W) {
    Vec<Real> square[W];
    SUMPROD_UNROLL
    for (int l = 0; l < W; ++l) {
      const Real* at = source[l] + offset(k, keep[l]);
      square[l] = load(at);
      __builtin_prefetch(at + kPrefetch);
    }
    transpose<Real>(square);
    SUMPROD_UNROLL
    for (int i = 0; i < W; ++i) store(target + i * W, square[i]);
  }
  return k;
}

template <class Layout, class External>
void Tile<Layout, External>::flush_flat() {
  const int64_t first = begin_ * states_, last = end_ * states_;
  for (int64_t k = first; k < last;) {
    const int64_t start = k, whole = last - W + 1;
    if (k >= whole) {
      split_runs(k);
    } else if (k < run_begin_ || k >= run_end_) {
      find_runs(k);
    }
    const int64_t end = k >= whole ? last : smaller(whole, run_end_);
    if (streams_) {
      k = flush_registers(k, end, [](int64_t at, int64_t) SUMPROD_INLINE_LAMBDA { return at; });
    } else {
      k = flush_registers(k, end, [](int64_t at, int64_t keep) SUMPROD_INLINE_LAMBDA { return at & keep; });
    }
    for (int l = 0; l < Layout::kLanes && !streams_; ++l) {
      if (!run_[l].split) continue;
      const Real* part = parts_ + l * W;
      for_each_part(l, start, last, [&](int64_t from, int64_t to, External* target) {
        for (int64_t i = from; i < to; ++i) target[i - from] = External(part[i]);
      });
    }
  }
}

template <class Layout, class External>
template <class Offset>
SUMPROD_INLINE int64_t Tile<Layout, External>::flush_registers(int64_t k, int64_t end, Offset offset) {
  Real* target[W];
  int64_t keep[W];
  for (int l = 0; l < W; ++l) {
    target[l] = reinterpret_cast<Real*>(run_[l].at);
    keep[l] = run_[l].keep;
  }
  for (const Real* source = data_ + (k - begin_ * states_) * W; k < end; k += W, source += W * W) {
    Vec<Real> square[W];
    SUMPROD_UNROLL
    for (int i = 0; i < W; ++i) square[i] = load(source + i * W);
    transpose<Real>(square);
    SUMPROD_UNROLL
    for (int l = 0; l < W; ++l) store(target[l] + offset(k, keep[l]), square[l]);
  }
  return k;
}

template <class Layout, class External>
void Tile<Layout, External>::fill() {
  if constexpr (Layout::kLanes > 1) {
    if (is_flat()) return fill_flat();
  }
  for (int l = 0; l < Layout::kLanes; ++l) {
    for (int64_t t = begin_; t < end_;) {
      const Piece here = piece(l, t);
      for (const int64_t end = smaller(here.end, end_); t < end; ++t) {
        Real* message = data_ + (t - begin_) * vectors_ * W + l;
        const External* source = here.segment < 0 ? nullptr : row(here.segment, t);
        for (int64_t s = 0; s < states_; ++s) {
          message[s * Layout::kMessage] = source == nullptr ? Real(0) : Real(source[s * state_stride_]);
        }
      }
    }
  }
  // Lanes beyond the last state must never win a maximum nor carry mass.
  if (Layout::kMessage > 1) return;
  for (int64_t t = begin_; t < end_; ++t) {
    Real* message = data_ + (t - begin_) * vectors_ * W;
    for (int64_t s = states_; s < vectors_ * W; ++s) message[s] = -kInfinity<Real>;
  }
}

template <class Layout, class External>
void Tile<Layout, External>::flush() {
  if (begin_ == end_) return;
  if constexpr (Layout::kLanes > 1) {
    if (is_flat()) return flush_flat();
  }
  for (int l = 0; l < Layout::kLanes; ++l) {
    for (int64_t t = begin_; t < end_;) {
      const Piece here = piece(l, t);
      const int64_t end = smaller(here.end, end_);
      for (; t < end && here.segment >= 0; ++t) {
        const Real* message = data_ + (t - begin_) * vectors_ * W + l;
        External* target = row(here.segment, t);
        for (int64_t s = 0; s < states_; ++s) target[s * state_stride_] = External(message[s * Layout::kMessage]);
      }
      t = end;
    }
  }
}

}  // namespace
