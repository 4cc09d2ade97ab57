// The passes that the general CUDA kernels of the HMM operators are made of. Sequences are worked on in chunks, as
// many at a time as their messages have room for: sequence `first + slot` has the slot-th part of the scratch memory.
#pragma once

#include "gpu/hmm_log_space.cuh"
#include "ops/hmm_general.h"

namespace sumprod {

struct HmmChunk {
  int64_t first, count;
};

// What a chunk's sequences leave for later passes, in the order of slots; null where nobody needs it.
struct HmmMessages {
  int64_t slots;           // the most sequences of a chunk
  double* forward;         // [steps, states]: absolute log messages, emission included
  double* backward;        // [steps, states]: backward message plus emission; not for step 0
  double* total;           // [steps]: log of the total weight, as that step sees it
  double* log_normalizer;  // []
  double* work;            // messages in use, [rows, states], where shared memory is too small for them
  int64_t bytes;           // of all
};
enum class HmmKeep { nothing, forward, both };

// Cuts the task's scratch memory (or, when that is null, only counts). `rows` messages are in use at a time.
HmmMessages hmm_messages(const HmmGeneral& task, HmmKeep keep, int rows, const gpu::Stream& stream);

// Rows of messages in use: forward, the last two; backward, the last two of two kinds.
constexpr int kForwardRows = 2, kBackwardRows = 4;

// Calls work(chunk) for all sequences, chunk by chunk.
template <class Work>
void for_each_chunk(const HmmGeneral& task, const HmmMessages& messages, Work work) {
  for (int64_t first = 0; first < task.problem.batch; first += messages.slots) {
    const int64_t rest = task.problem.batch - first;
    work(HmmChunk{first, rest < messages.slots ? rest : messages.slots});
  }
}

struct HmmForwardPass {
  HmmGeneral task;
  HmmMessages messages;
  HmmChunk chunk;
  gpu::HmmTeams teams;
  void* log_normalizer;  // [batch], or null
  void* filtered;        // [batch, steps, states], or null
  int64_t* dead;         // [batch], or null; needs the forward messages
};
void hmm_forward_pass(HmmForwardPass pass, const gpu::Stream& stream);

struct HmmBackwardPass {
  HmmGeneral task;
  HmmMessages messages;
  HmmChunk chunk;
  gpu::HmmTeams teams;
  void* rows;            // [batch, steps, states] of posteriors, or null
  const void* upstream;  // [batch]: rows are probabilities times this; null: rows are log-probabilities
  void* initial;         // [batch, states]: the first of the rows once more, or null
};
void hmm_backward_pass(HmmBackwardPass pass, const gpu::Stream& stream);

}  // namespace sumprod
