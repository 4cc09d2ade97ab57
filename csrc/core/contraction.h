// A contraction plan with data: what the kernels of `contract` work on.
//
// The slices along one plate, the lane plate, are independent until it is reduced. A tile is as many of
// them as a register has float lanes; a kernel runs the whole plan on one tile, so that every message
// of the tile stays in cache, and no product of factors is ever stored.
//
// A message (a factor, or what a step has computed) has slices, one per position in the plates that it
// has besides the lane plate, and elements, one per value of its variables.
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

struct ContractionFactor {
  const void* data;  // log-potentials
  ContractionView view;
  void* grad;  // null, or where the gradient goes
  ContractionView grad_view;
};

struct ContractionMessage {
  int64_t slices, elements;
  int64_t offset;                   // in the tile's memory, in registers; factors share scratch memory
  const ContractionFactor* factor;  // null: the output of a step
};

// out = reduce over plates( sum over variables( product of the inputs ) ). Either some plates are
// reduced, of a single input, or none.
struct ContractionStep {
  int32_t inputs;
  const int32_t* input;  // numbers of messages
  int32_t output;
  int64_t slices;  // of the output
  int64_t terms;   // elements summed, or slices reduced, for each element of the output
  // For each input: the slice for a slice of the output, the element for an element of the output, and
  // what is added for each term (to the element; where plates are reduced, to the slice).
  const int32_t* const* slice_at;
  const int32_t* const* element_at;
  const int32_t* const* term_at;
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
  const double* uniform;  // [slices of the output, lanes]; null: take the largest term
};

// The steps whose messages have the lane plate (or all steps, where there is none).
struct ContractionPhase {
  int32_t messages, steps, results;
  const ContractionMessage* message;
  const ContractionStep* step;
  const ContractionResult* result;
  int64_t lanes;      // size of the lane plate
  int64_t scratch;    // where the memory that factors share begins, in registers
  int64_t registers;  // of a tile's memory, without gradients
  double* partial;    // [tiles, elements of each step that reduces lanes, in order]
  int64_t partial_row;
  const double* partial_grad;  // [elements], in the backward pass
  bool is_float;               // factors are float32: use float where it is wide enough
  bool max_plus;
  const ContractionDraw* draw;  // one per step, when drawing
};

struct ContractionTask {
  const ContractionPhase* phase;
  int64_t begin, end;  // tiles
  void* memory;        // null: nothing is computed, and the bytes needed are returned
};

SUMPROD_DECLARE_KERNEL(int64_t, contract_tiles, (const ContractionTask&))
SUMPROD_DECLARE_KERNEL(int64_t, contract_backward_tiles, (const ContractionTask&))
SUMPROD_DECLARE_KERNEL(int64_t, contract_draw_tiles, (const ContractionTask&))

}  // namespace sumprod
