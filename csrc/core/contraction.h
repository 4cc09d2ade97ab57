// A contraction plan with data: what the kernels of `contract` work on.
//
// The slices along one plate, the lane plate, are independent until it is reduced. A tile is as many of
// them as a register has float lanes; a kernel runs the whole plan on one tile, so that every message
// of the tile stays in cache, and no product of factors is ever stored. Without a lane plate there is one
// tile, and registers run along the elements of messages.
//
// A message (a factor, or what a step has computed) has slices, one per position in the plates that it
// has besides the lane plate, and elements, one per value of its variables. The step that takes a message
// in (there is but one) decides the order of its elements: those of the variables that the step sums out
// come before those that it leaves.
#pragma once

#include <stdint.h>

#include "core/isa.h"

namespace sumprod {

// Where the elements of a message lie in a tensor: slice[s] + element[e] + lane * lane_stride.
struct ContractionView {
  const int64_t* slice;
  const int64_t* element;
  int64_t lane_stride;
  int64_t run;  // elements in groups of so many lie side by side
  bool is_double;
};

// A tensor in one place of the plan.
struct ContractionFactor {
  const void* data;  // log-potentials
  ContractionView view;
  void* grad;  // null, or where the gradient goes
  ContractionView grad_view;
  bool adds;       // to the gradient, which other places, or other slices, are added to as well
  int32_t shared;  // its number among those that are the same for all lanes, or -1
};

// A factor that is the same for all lanes, made ready once for all tiles.
struct ContractionShared {
  int32_t message;   // one that holds it
  int32_t factor;    // its tensor
  int64_t value_at;  // elements before it
  int64_t slice_at;  // slices before it
  bool accumulates;  // its gradient is summed over all lanes and places
  bool adds;         // that sum to the gradient, which other places are added to as well
};

struct ContractionMessage {
  int64_t slices, elements;
  int64_t value_at, slice_at;  // in the tile's memory: lanes, and slices, before it
  int32_t factor;              // its number, or -1: the output of a step
};

// Which dims of a step an input has.
enum class ContractionRole : int32_t {
  both,      // some that are summed out, and some that are left
  terms,     // only such as are summed out
  elements,  // only such as are left
  neither,
};

struct ContractionInput {
  int32_t message;
  ContractionRole role;
  // The slice for a slice of the output, the element for an element of the output, and what is added for
  // each term (to the element; where plates are reduced, to the slice).
  const int32_t* slice_at;
  const int32_t* element_at;
  const int32_t* term_at;
};

// out = reduce over plates( sum over variables( product of the inputs ) ). Either some plates are
// reduced, of a single input, or none.
struct ContractionStep {
  int32_t inputs;
  const ContractionInput* input;
  int32_t matrix;  // the input that alone has both kinds of dims, and all of them; else -1
  int32_t output;
  int64_t terms;  // elements summed, or slices reduced, for each element of the output
  bool reduces_plates;
  bool reduces_lanes;  // across the lane plate too; the output is then a row of `partial`
};

struct ContractionResult {
  int32_t message;
  void* data;        // log-values in the dtype of the view; null when not wanted
  const void* grad;  // in the backward pass
  ContractionView view;
  ContractionView grad_view;
};

// A variable's values: data[slice[s] + lane * lane_stride] for a slice of some step's output.
struct ContractionChoice {
  int64_t* data;
  const int64_t* slice;
  int64_t lane_stride;
  int64_t stride;  // of the value in the step's terms, or in the elements of its output
  int64_t size;
};

// Draws of the variables that a step sums out, given those of its output.
struct ContractionDraw {
  int32_t drawn, given;
  const ContractionChoice *drawn_choice, *given_choice;
  // uniform[uniform_slice[s] + lane * uniform_lane_stride]; null: take the largest term.
  const double* uniform;
  const int64_t* uniform_slice;
  int64_t uniform_lane_stride;
};

// What does not change with the data: the steps whose messages have the lane plate, or those that have not.
struct ContractionShape {
  int32_t messages, steps;
  const ContractionMessage* message;
  const ContractionStep* step;
  int64_t lanes;            // size of the lane plate
  bool has_lanes;           // otherwise registers run along elements
  int32_t inputs;           // of the step that has most
  int64_t terms, elements;  // of the step that has most
  // Of a tile's memory, in lanes and in slices: outputs of steps stay, factors share what comes after.
  int64_t kept_values, values, slices;
  int64_t partial_row;  // elements of all steps that reduce lanes
};

struct ContractionPhase {
  ContractionShape shape;
  const ContractionFactor* factor;
  int32_t results;
  const ContractionResult* result;
  const ContractionShared* shared;
  // Shared factors: entries as the first arithmetic takes them (float or double), their log-scale per
  // slice, and the exponent of each one's smallest entry.
  void* shared_value;
  double* shared_scale;
  int64_t* shared_lowest;
  double* partial;             // [tiles, partial_row]
  const double* partial_grad;  // [partial_row], in the backward pass
  bool is_float;               // factors are float32: use float where it is wide enough
  bool max_plus;
  const ContractionDraw* draw;  // one per step, when drawing
};

struct ContractionTask {
  const ContractionPhase* phase;
  int64_t begin, end;   // tiles, or shared factors
  void* memory;         // null: nothing is computed, and the bytes needed are returned
  double* shared_grad;  // in the backward pass: where these tiles add up the gradients of shared factors
};

SUMPROD_DECLARE_KERNEL(int64_t, contract_prepare, (const ContractionTask&))
SUMPROD_DECLARE_KERNEL(int64_t, contract_tiles, (const ContractionTask&))
SUMPROD_DECLARE_KERNEL(int64_t, contract_backward_tiles, (const ContractionTask&))
SUMPROD_DECLARE_KERNEL(int64_t, contract_draw_tiles, (const ContractionTask&))

}  // namespace sumprod
