// Kernels of `contract`: tiles are run in the narrowest arithmetic that is exact for them.
#include "core/contraction.h"
#include "core/contraction_adjoint.h"
#include "core/contraction_draw.h"
#include "core/contraction_tile.h"

namespace sumprod::SUMPROD_ISA_NAMESPACE {

namespace {

int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Hands out pieces of a block of memory, or only counts their bytes.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<char*>(base)) {}
  char* take(int64_t bytes) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += rounded(bytes);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Lays out a task's memory and calls f with it; returns the bytes needed.
template <class F>
int64_t with_memory(const ContractionTask& task, bool backward, F f) {
  const ContractionShape& shape = task.phase->shape;
  const int64_t lanes = shape.has_lanes ? Simd<float>::kWidth : 1;
  // An entry is a register, or a number that may be a double.
  const int64_t entry = shape.has_lanes ? SUMPROD_VECTOR_BYTES : int64_t(sizeof(double));
  Pieces pieces(task.memory);
  TileMemory memory{};
  memory.values = pieces.take(shape.values * entry);
  memory.bars = pieces.take(backward ? shape.values * entry : 0);
  memory.scales = reinterpret_cast<double*>(pieces.take(shape.slices * lanes * int64_t(sizeof(double))));
  memory.norms = pieces.take(shape.slices * entry);
  memory.slots = pieces.take(shape.messages * int64_t(sizeof(Slot<ManyLanes<float>>)));
  memory.rows = pieces.take(shape.inputs * int64_t(sizeof(Row<ManyLanes<float>>)));
  memory.term_row = pieces.take(shape.terms * entry);
  memory.term_grad = pieces.take(backward ? shape.terms * entry : 0);
  memory.element_row = pieces.take(backward ? shape.elements * entry : 0);
  memory.turned = pieces.take(backward ? lanes * entry : 0);
  if (task.memory != nullptr) {
    const FlushDenormals flush;
    f(memory);
  }
  return pieces.used();
}

// What is done with a tile.
enum class Purpose { total, gradient, draw };

template <class L, Arithmetic kArithmetic, Purpose kPurpose>
bool run_tile(const ContractionTask& task, const TileMemory& memory, int64_t first, double* partial, bool prepared) {
  const ContractionPhase& phase = *task.phase;
  if constexpr (kPurpose == Purpose::gradient) {
    AdjointTile<L, kArithmetic> tile(phase, memory, first, prepared, task.shared_grad);
    if (!tile.forward(partial)) return false;
    tile.backward();
  } else if constexpr (kPurpose == Purpose::draw) {
    DrawingTile<L, kArithmetic> tile(phase, memory, first, prepared);
    if (!tile.forward(partial)) return false;
    tile.write_results();
    tile.draw();
  } else {
    Tile<L, kArithmetic> tile(phase, memory, first, prepared);
    if (!tile.forward(partial)) return false;
    tile.write_results();
  }
  return true;
}

// The lanes [first, end), in the narrowest arithmetic from `Real` on.
template <template <class> class Lanes, class Real, Purpose kPurpose>
void run_lanes(const ContractionTask& task, const TileMemory& memory, int64_t first, int64_t end, double* partial,
               bool prepared) {
  if (run_tile<Lanes<Real>, Arithmetic::scaled, kPurpose>(task, memory, first, partial, prepared)) return;
  if constexpr (sizeof(Real) == 4) {
    for (; first < end; first += Lanes<double>::kWidth) {
      run_lanes<Lanes, double, kPurpose>(task, memory, first, end, partial, false);
    }
  } else {
    run_tile<Lanes<double>, Arithmetic::log_sum, kPurpose>(task, memory, first, partial, false);
  }
}

template <template <class> class Lanes, Purpose kPurpose>
void run_number(const ContractionTask& task, const TileMemory& memory, int64_t number) {
  constexpr int W = Lanes<float>::kWidth;
  const ContractionPhase& phase = *task.phase;
  const int64_t lanes = phase.shape.lanes;
  const int64_t first = number * W, end = first + W < lanes ? first + W : lanes;
  double* partial = phase.partial + number * phase.shape.partial_row;
  for (int64_t i = 0; i < phase.shape.partial_row; ++i) partial[i] = 0;
  if (phase.is_float && !phase.max_plus) {
    run_lanes<Lanes, float, kPurpose>(task, memory, first, end, partial, true);
    return;
  }
  for (int64_t lane = first; lane < end; lane += Lanes<double>::kWidth) {
    if (phase.max_plus) {
      if constexpr (kPurpose != Purpose::gradient) {
        run_tile<Lanes<double>, Arithmetic::max_plus, kPurpose>(task, memory, lane, partial, true);
      }
    } else {
      run_lanes<Lanes, double, kPurpose>(task, memory, lane, end, partial, true);
    }
  }
}

template <Purpose kPurpose>
int64_t run_task(const ContractionTask& task) {
  return with_memory(task, kPurpose == Purpose::gradient, [&](const TileMemory& memory) {
    for (int64_t i = task.begin; i < task.end; ++i) {
      if (task.phase->shape.has_lanes) {
        run_number<ManyLanes, kPurpose>(task, memory, i);
      } else {
        run_number<OneLane, kPurpose>(task, memory, i);
      }
    }
  });
}

template <class Real>
void prepare(const ContractionPhase& phase, int64_t number) {
  const ContractionShared& shared = phase.shared[number];
  const ContractionMessage& m = phase.shape.message[shared.message];
  const ContractionFactor& factor = phase.factor[shared.factor];
  Real* value = static_cast<Real*>(phase.shared_value) + shared.value_at;
  with_type(factor.view.is_double, factor.data,
            [&](const auto* data) { load_message<OneLane<Real>>(m, factor.view, data, 0, 1, value); });
  phase.shared_lowest[number] = 0;
  if (!phase.max_plus) {
    phase.shared_lowest[number] =
        scale_logs<OneLane<Real>>(value, phase.shared_scale + shared.slice_at, m.slices, m.elements);
  }
}

}  // namespace

int64_t contract_prepare(const ContractionTask& task) {
  const FlushDenormals flush;
  for (int64_t i = task.begin; i < task.end; ++i) {
    if (task.phase->is_float && !task.phase->max_plus) {
      prepare<float>(*task.phase, i);
    } else {
      prepare<double>(*task.phase, i);
    }
  }
  return 0;
}

int64_t contract_tiles(const ContractionTask& task) { return run_task<Purpose::total>(task); }

int64_t contract_draw_tiles(const ContractionTask& task) { return run_task<Purpose::draw>(task); }

int64_t contract_backward_tiles(const ContractionTask& task) { return run_task<Purpose::gradient>(task); }

}  // namespace sumprod::SUMPROD_ISA_NAMESPACE
