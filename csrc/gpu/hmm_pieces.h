// Few long sequences in parallel over time (Särkkä and García-Fernández 2021, "Temporal Parallelization of Bayesian
// Smoothers"), with the resident recursion as its building block.
//
// A sequence is cut into pieces of equal length. With a message as a row vector, what piece c does to the message
// before it is a matrix: M_c = product over its steps t of W diag(f_t), W the transition weights and f_t the factors
// of the emissions.
//   1. Every piece runs once from every state: that is M_c, row by row. Piece 0 runs from the initial potential: one
//      row.
//   2. The message before every piece, and the total, are carried through the matrices: m_c+1 = m_c M_c. The backward
//      message at the last step of every piece comes from the same matrices: b_c-1 = M_c b_c. Where there are many
//      pieces, this takes two levels: products of ranges of matrices first, then messages from range to range, then
//      within each range.
//   3. Where messages are to be kept, every piece runs once more, from its known start.
//
// What may be trusted. Every row of a matrix is relative to a scale of its own, and the bounds of LinearTrust are
// about a message relative to its best state, whatever it started from: they hold for a start from one state as for
// any other. In a dense chain what falls below the smallest normal number is therefore negligible in everything that
// follows from that row, and a combination of rows with weights that are not negative is as good as the rows. In a
// watched chain every entry that is possible is above the floor or the sequence is given up, so that an entry of a
// row is 0 only if no path leads there. A row of zeros, a state that no path leads on from, is an answer, not an
// error.
#pragma once

#include "gpu/hmm_recursion.h"

namespace sumprod::gpu {

// For every sequence and place along it, a matrix of weights from the state before the place to its last state. An
// entry stands for matrix * 2^order (max-plus: matrix + order), times exp(log).
struct HmmTransfers {
  double* matrix;  // [batch, count, states, states]; at place 0 only row 0, from the initial potential
  double* order;   // [batch, count, states]: of each row
  double* log;     // [batch, count]
  int64_t count;   // places per sequence
};

// For every place, where its passes start; best state about 1 (0). Null when not wanted.
struct HmmStarts {
  double* forward;   // [batch, count, states]: the message before the place, emission included; not for place 0
  double* order;     // [batch, count]: what it stands for is forward * 2^order
  double* backward;  // [batch, count, states]: the backward message at the last step of the place
};

struct HmmPieces {
  int64_t steps, count;  // of a piece; pieces per sequence
  HmmTransfers transfers;
  HmmStarts starts;
  uint8_t* watched;  // [batch]: whether rows of the matrices tell possible states from impossible ones
};

// Pieces, and ranges of pieces. A count of 1 stands for no division.
struct HmmDivision {
  int64_t steps, pieces;  // per piece; per sequence
  int64_t range, ranges;  // pieces per range; ranges per sequence
};
inline int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }
// For tests on the emulated GPU: what SUMPROD_EMULATED_PIECES says, "steps of a piece, pieces of a range"; else false.
bool forced_pieces(int64_t* steps, int64_t* range);
HmmDivision divide_in_time(const HmmProblem& problem, const Stream& stream);
// The scratch memory that the division needs; 0 where there is none.
int64_t divided_scratch_bytes(const HmmProblem& problem, const Stream& stream);

// The scratch memory of a division, or, with a null base, only its size.
struct HmmPieceMemory {
  HmmPieces pieces;
  HmmTransfers range_transfers;
  HmmStarts range_starts;
  int64_t bytes;
  HmmPieceMemory(const HmmProblem& problem, const HmmDivision& division, void* base);
};

// Phase 2: from all transfers of pieces to the starts of pieces (where `starts` is set) and the total.
struct HmmCarry {
  HmmProblem problem;
  HmmDivision division;
  HmmPieceMemory memory;
  bool max_plus, starts, backward;
  void* total;    // or null
  uint8_t* redo;  // sequences whose total is not finite, or whose matrices cannot be combined
};
void carry_messages(const HmmCarry& carry, const Stream& stream);

}  // namespace sumprod::gpu
