// Entry-by-entry work on slices, with up to two parameters per slice.
#pragma once

#include "core/slice_blocks.h"

namespace {

// Calls f(entry registers, a, b) on entries of slices and writes what it returns; a and b hold one
// real per slice and come from parameters(shape, group, index, a, b). `items` numbers groups chunk
// by chunk.
template <class Real, class Parameters, class F>
class SliceMap {
 public:
  static constexpr int W = Simd<Real>::kWidth;

  SliceMap(const SliceProblem& problem, Real* output, void* workspace, const Parameters& parameters, const F& f)
      : shape_(problem),
        reduced_(problem.reduced),
        input_(static_cast<const Real*>(problem.input)),
        output_(output),
        buffer_(static_cast<Real*>(workspace)),
        parameters_(parameters),
        f_(f) {}

  void run(int64_t begin_item, int64_t end_item) {
    const bool sweep = shape_.side_by_side(kInput) && shape_.side_by_side(kOutput);
    for (int64_t item = begin_item; item < end_item;) {
      const int64_t index = item % shape_.groups, chunk = item / shape_.groups;
      begin_ = chunk * kSliceChunk;
      end_ = least(begin_ + kSliceChunk, reduced_.count);
      const int64_t panel = sweep ? shape_.panel_of(index, least(kPanel, end_item - item)) : 1;
      group_ = shape_.group(index);
      if (group_.count == W && sweep) {
        run_sweep(index, panel);
      } else if (shape_.columns()) {
        run_columns(index);
      } else {
        run_row(index);
      }
      item += panel;
    }
  }

 private:
  // Memory row by memory row over a panel of neighbouring groups.
  void run_sweep(int64_t index, int64_t panel) {
    Vec<Real> a[kPanel], b[kPanel];
    for (int64_t p = 0; p < panel; ++p) parameters_(shape_, shape_.group(index + p), index + p, a[p], b[p]);
    const int64_t from_stride = inner_stride(reduced_, kInput), to_stride = inner_stride(reduced_, kOutput);
    for_stretches(reduced_, begin_, end_, [&](int64_t, int64_t count, const Offsets& at) {
      const Real* from = input_ + group_.base.of[kInput] + at.of[kInput];
      Real* to = output_ + group_.base.of[kOutput] + at.of[kOutput];
      for (int64_t i = 0; i < count; ++i, from += from_stride, to += to_stride) {
        for (int64_t p = 0; p < panel; ++p) store(to + p * W, f_(load(from + p * W), a[p], b[p]));
      }
    });
  }

  void run_columns(int64_t index) {
    Vec<Real> a, b;
    parameters_(shape_, group_, index, a, b);
    for (int64_t begin = begin_; begin < end_; begin += kSliceBlock) {
      const int64_t end = least(begin + kSliceBlock, end_);
      read_columns(shape_, reduced_, &group_, 1, input_, begin, end, buffer_, 0);
      for (int64_t j = 0; j < end - begin; ++j) store(buffer_ + j * W, f_(load(buffer_ + j * W), a, b));
      write_columns(shape_, reduced_, group_, buffer_, begin, end, output_);
    }
  }

  void run_row(int64_t index) {
    Vec<Real> a, b;
    parameters_(shape_, group_, index, a, b);
    const bool in_place = SliceShape<Real>::flat(reduced_, kOutput);
    Real* target = output_ + group_.base.of[kOutput];
    for (int64_t begin = begin_; begin < end_; begin += kSliceBlock) {
      const int64_t end = least(begin + kSliceBlock, end_), n = end - begin;
      const Real* row = read_row(reduced_, input_ + group_.base.of[kInput], begin, end, buffer_);
      Real* to = in_place ? target + begin : buffer_;
      int64_t j = 0;
      for (; j + W <= n; j += W) store(to + j, f_(load(row + j), a, b));
      if (j < n) store_partial(to + j, n - j, f_(load_partial(row + j, n - j, Real(0)), a, b));
      if (!in_place) write_row(reduced_, buffer_, target, begin, end);
    }
  }

  const SliceShape<Real> shape_;
  const SliceLoop& reduced_;
  const Real* input_;
  Real *output_, *buffer_;
  const Parameters& parameters_;
  const F& f_;
  SliceGroup<Real> group_;
  int64_t begin_ = 0, end_ = 0;
};

}  // namespace
