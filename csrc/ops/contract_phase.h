// Turns a plan, and the strides of tensors, into what the kernels of `contract` read: once per plan, and once
// per set of strides, for many calls.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "core/contraction.h"
#include "ops/contract_plan.h"

namespace sumprod {

// Keeps each distinct list once, and in place.
template <class T>
class Lists {
 public:
  const T* keep(std::vector<T> list) { return known_.insert(std::move(list)).first->data(); }

 private:
  std::set<std::vector<T>> known_;
};

// For each position in dims of given sizes, in row-major order, its distance given strides.
template <class T>
std::vector<T> distances(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  std::vector<T> out{0};
  for (size_t d = 0; d < sizes.size(); ++d) {
    std::vector<T> longer;
    longer.reserve(out.size() * static_cast<size_t>(sizes[d]));
    for (const T base : out) {
      for (int64_t i = 0; i < sizes[d]; ++i) longer.push_back(base + static_cast<T>(i * strides[d]));
    }
    out = std::move(longer);
  }
  return out;
}

// The steps of one connected component that have the lane plate, or those that have not.
class PhaseProgram {
 public:
  // `steps` are numbers of steps; `lane` is the lane plate or -1; `result` is a slot, or -1.
  PhaseProgram(const PlanProgram& program, std::vector<int32_t> steps, int32_t result, int32_t lane);
  PhaseProgram(const PhaseProgram&) = delete;

  // A message that comes from outside: a factor, or (in the second phase) what the first has reduced.
  struct Input {
    int32_t slot, message;
  };

  const PlanProgram& program() const { return program_; }
  int32_t lane() const { return lane_; }
  const std::vector<int32_t>& steps() const { return step_numbers_; }
  const std::vector<Input>& inputs() const { return inputs_; }
  int32_t result_message() const { return result_message_; }
  // Outputs of steps that reduce the lane plate, in the order of their columns in `partial`.
  const std::vector<int32_t>& reduced() const { return reduced_; }
  // The plates of dims, without the lane plate.
  std::vector<int32_t> slices_of(const std::vector<int32_t>& dims) const;
  int64_t tiles() const;

  // Outputs of steps stay in a tile's memory, for the backward pass and for draws; or they make room for others
  // as soon as they have been taken in, so that a tile fits into cache.
  ContractionShape shape{}, forward_shape{};

 private:
  int32_t message_of(int32_t slot);
  void add_step(int32_t number);
  ContractionInput input_of(const PlanStep& step, int32_t output, int32_t slot);
  const int32_t* table(const std::vector<int32_t>& loop, const std::vector<int32_t>& own);
  void collect_inputs();
  void lay_out(ContractionShape& to, std::vector<ContractionMessage>& messages, bool reuses);

  const PlanProgram& program_;
  const int32_t lane_;
  const std::vector<int32_t> step_numbers_;
  std::map<int32_t, int32_t> message_number_;  // of each slot
  std::vector<int32_t> slot_of_;               // of each message
  std::vector<ContractionMessage> messages_, forward_messages_;
  std::vector<ContractionStep> steps_;
  std::deque<std::vector<ContractionInput>> input_lists_;
  std::vector<Input> inputs_;
  std::vector<int32_t> reduced_;
  int32_t result_message_ = -1;
  Lists<int32_t> tables_;
};

// How a tensor that stands for a slot lies in memory.
struct SlotLayout {
  std::vector<int64_t> strides;  // per dim
  // Per dim, whether the tensor has size 1 although the dim is larger: all positions are that one.
  std::vector<bool> broadcast;
  bool operator==(const SlotLayout&) const = default;
};

// Layouts of new tensors: of a whole slot, and of one that is broadcast like another.
SlotLayout contiguous_layout(const PlanProgram& program, int32_t slot, const std::vector<bool>& broadcast = {});
// Of an output in a row of partial sums: slices, then elements, as in its message.
SlotLayout message_layout(const PlanProgram& program, int32_t slot);

// Where the kernels find the inputs of a phase in tensors of given layouts.
class PhaseViews {
 public:
  // `operands` has the layout of each operand.
  PhaseViews(const PhaseProgram& phase, const std::vector<SlotLayout>& operands, bool is_double, bool with_gradients);
  PhaseViews(const PhaseViews&) = delete;

  std::vector<ContractionFactor> factors;  // one per input of the phase; no data yet
  std::vector<ContractionShared> shared;
  int64_t shared_values = 0, shared_slices = 0;
  // The shared factors whose gradients are summed, those of one operand together.
  std::vector<std::vector<int32_t>> accumulated;

 private:
  ContractionView view(const PhaseProgram& phase, int32_t slot, const SlotLayout& layout, bool is_double);
  void share(const PhaseProgram& phase, size_t input, int32_t operand, bool accumulates);

  Lists<int64_t> lists_;
  std::map<std::vector<int64_t>, int32_t> known_shared_;
  std::map<int32_t, size_t> accumulated_of_;  // operand -> its place in `accumulated`
};

// Where the elements of a slot lie.
ContractionView view_of(const PhaseProgram& phase, int32_t slot, const SlotLayout& layout, bool is_double,
                        Lists<int64_t>& lists);

}  // namespace sumprod
