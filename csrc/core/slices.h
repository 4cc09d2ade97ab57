// A strided tensor seen as slices: some dims are kept (they number the slices), the others are
// reduced (they number the entries of a slice, in logical order). Shared by CPU and CUDA.
//
// The host drops dims of size 1 and merges dims that are one stride apart, so that almost every
// tensor arrives as one kept and one reduced dim.
#pragma once

#include <stdint.h>

namespace sumprod {

constexpr int kMaxDims = 64;

// Three arrays are walked together.
enum SliceOperand {
  kInput,   // the tensor that is reduced
  kResult,  // one entry per slice; its reduced strides are 0
  kOutput,  // a tensor of the input's shape, written; unused by plain reductions
  kOperands,
};

// Nested loops, outermost first; strides in elements. No dims: one position.
struct SliceLoop {
  int dims;
  int64_t count;
  int64_t size[kMaxDims];
  int64_t stride[kOperands][kMaxDims];
};

enum class SliceType { float32, float64, float16, bfloat16 };

struct SliceProblem {
  SliceLoop kept, reduced;
  const void* input;
  SliceType type;   // of the input; half types are computed in float32
  bool has_output;  // kOutput strides matter for the choice of a path
};

// How a kernel divides a problem: `items` pieces of work, numbered chunk by chunk. When a slice is
// longer than a chunk (chunks > 1), each item leaves a partial result, combined at the end.
struct SlicePlan {
  int64_t groups;  // sets of slices that travel together
  int64_t slices_per_group;
  int64_t chunks;           // per slice
  int64_t workspace_bytes;  // per worker
};

// A maximum and sums of exponentials relative to it: sum = sum_j exp(x_j - top), squares likewise
// with 2 (x_j - top). With top = +inf both count the +inf entries; NaN anywhere makes them NaN.
struct SlicePartial {
  double top, sum, squares;
};

}  // namespace sumprod
