#include "ops/contract_run.h"

#include <algorithm>

#include "ops/parallel.h"

namespace sumprod {

namespace {

// Tiles are added up in groups, as many whatever the number of threads: so sums do not depend on it.
constexpr int64_t kMostGroups = 32;
constexpr int64_t kMostGroupBytes = int64_t{1} << 27;

int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class Stored>
void write_sums(const ContractionMessage& m, const ContractionView& view, bool adds, const double* sums, Stored* data) {
  for (int64_t s = 0; s < m.slices; ++s) {
    Stored* row = data + view.slice[s];
    for (int64_t e = 0; e < m.elements; ++e, ++sums) {
      Stored& to = row[view.element[e]];
      to = static_cast<Stored>(adds ? to + *sums : *sums);
    }
  }
}

}  // namespace

// ---- a phase --------------------------------------------------------------------------------

BoundPhase::BoundPhase(const PhaseProgram& program, const PhaseViews& views, const std::vector<OperandData>& operands,
                       bool is_double)
    : program_(program), views_(views), is_double_(is_double), factors_(views.factors) {
  const std::vector<int32_t>& operand_of = program.program().operand_of;
  for (size_t i = 0; i < factors_.size(); ++i) {
    const int32_t slot = program.inputs()[i].slot;
    if (slot >= static_cast<int32_t>(operand_of.size())) continue;
    factors_[i].data = operands[operand_of[slot]].data;
    factors_[i].grad = operands[operand_of[slot]].grad;
  }
  phase_.shape = program.shape;
  phase_.factor = factors_.data();
  phase_.shared = views.shared.data();
  phase_.is_float = !is_double;
  if (program.result_message() >= 0) {
    result_.message = program.result_message();
    phase_.results = 1;
    phase_.result = &result_;
  }
  partial_.resize(static_cast<size_t>(program.tiles() * phase_.shape.partial_row));
  reduced_.resize(static_cast<size_t>(phase_.shape.partial_row));
  phase_.partial = partial_.data();
}

void BoundPhase::bind_links(const std::vector<int32_t>& slots, const double* values, double* grads) {
  for (size_t i = 0; i < factors_.size(); ++i) {
    int64_t column = 0;
    for (int32_t slot : slots) {
      if (program_.inputs()[i].slot == slot) {
        factors_[i].data = values + column;
        factors_[i].grad = grads + column;
      }
      column += program_.program().volume(program_.program().dims_of(slot));
    }
  }
}

void BoundPhase::bind_result(int32_t slot, void* data) {
  result_.data = data;
  result_.view = view_of(program_, slot, contiguous_layout(program_.program(), slot), is_double_, lists_);
}

void BoundPhase::bind_result_grad(int32_t slot, const void* grad, const SlotLayout& layout) {
  result_.grad = grad;
  result_.grad_view = view_of(program_, slot, layout, is_double_, lists_);
}

BoundPhase::SlicePlaces BoundPhase::places_in(const std::vector<int32_t>& plates, const std::vector<int32_t>& slices) {
  const PlanProgram& plan = program_.program();
  const auto stride_of = [&](int32_t one) -> int64_t {
    const auto found = std::find(plates.begin(), plates.end(), one);
    return found == plates.end() ? 0 : plan.volume({found + 1, plates.end()});
  };
  std::vector<int64_t> sizes, strides;
  for (int32_t plate : slices) {
    sizes.push_back(plan.sizes[plate]);
    strides.push_back(stride_of(plate));
  }
  return {lists_.keep(distances<int64_t>(sizes, strides)), stride_of(program_.lane())};
}

ContractionChoice BoundPhase::choice_of(const VariableValues& values, int32_t dim, const std::vector<int32_t>& slices,
                                        const std::vector<int32_t>& elements) {
  const PlanProgram& plan = program_.program();
  const SlicePlaces places = places_in(values.plates, slices);
  const auto found = std::find(elements.begin(), elements.end(), dim);
  return {values.data, places.slice, places.lane_stride, plan.volume({found + 1, elements.end()}), plan.sizes[dim]};
}

void BoundPhase::bind_draws(const std::vector<VariableValues>& values, const std::vector<const double*>& uniform) {
  const PlanProgram& plan = program_.program();
  for (int32_t number : program_.steps()) {
    const PlanStep& step = plan.steps[number];
    const std::vector<int32_t> slices = program_.slices_of(step.dims), terms = plan.variables_in(step.variables);
    const std::vector<int32_t>& elements = plan.order[plan.factors.size() + static_cast<size_t>(number)];
    std::vector<ContractionChoice>& drawn = choices_.emplace_back();
    for (int32_t dim : terms) drawn.push_back(choice_of(values[dim], dim, slices, terms));
    std::vector<ContractionChoice>& given = choices_.emplace_back();
    if (!terms.empty()) {
      for (int32_t dim : elements) given.push_back(choice_of(values[dim], dim, slices, elements));
    }
    // One for each slice, whichever plate is the lane plate.
    const SlicePlaces at = places_in(plan.plates_in(step.dims), slices);
    draws_.push_back({static_cast<int32_t>(drawn.size()), static_cast<int32_t>(given.size()), drawn.data(),
                      given.data(), uniform[number], at.slice, at.lane_stride});
  }
  phase_.draw = draws_.data();
}

// Reads the factors that are the same in all lanes, once for all tiles.
void BoundPhase::prepare_shared() {
  if (views_.shared.empty() || shared_memory_.has_value()) return;
  const int64_t values = rounded(views_.shared_values * static_cast<int64_t>(sizeof(double)));
  const int64_t scales = rounded(views_.shared_slices * static_cast<int64_t>(sizeof(double)));
  const auto count = static_cast<int64_t>(views_.shared.size());
  shared_memory_.emplace(1, values + scales + count * static_cast<int64_t>(sizeof(int64_t)));
  char* base = static_cast<char*>(shared_memory_->of(0));
  phase_.shared_value = base;
  phase_.shared_scale = reinterpret_cast<double*>(base + values);
  phase_.shared_lowest = reinterpret_cast<int64_t*>(base + values + scales);
  // Small ones are not worth a thread each.
  const int64_t pieces = std::min<int64_t>(count, 1 + views_.shared_values / 4096);
  parallel_run(pieces, worker_count(pieces), [&](int64_t piece, int) {
    SUMPROD_KERNEL(contract_prepare)({&phase_, piece * count / pieces, (piece + 1) * count / pieces, nullptr, nullptr});
  });
}

void BoundPhase::run_tiles(Kernel kernel) {
  prepare_shared();
  const int64_t tiles = program_.tiles();
  const int workers = worker_count(tiles);
  const Workspace memory(workers, kernel({&phase_, 0, 0, nullptr, nullptr}));
  parallel_run(tiles, workers,
               [&](int64_t tile, int worker) { kernel({&phase_, tile, tile + 1, memory.of(worker), nullptr}); });
  add_partials();
}

void BoundPhase::run_forward() {
  phase_.shape = program_.forward_shape;
  run_tiles(SUMPROD_KERNEL(contract_tiles));
  phase_.shape = program_.shape;
}

void BoundPhase::run_draw() { run_tiles(SUMPROD_KERNEL(contract_draw_tiles)); }

void BoundPhase::run_backward(const double* reduced_grad) {
  prepare_shared();
  phase_.partial_grad = reduced_grad;
  const Kernel kernel = SUMPROD_KERNEL(contract_backward_tiles);
  const int64_t tiles = program_.tiles();
  const bool accumulates = !views_.accumulated.empty();
  int64_t groups = tiles;
  if (accumulates) {
    const int64_t bytes = views_.shared_values * static_cast<int64_t>(sizeof(double));
    groups = std::min({tiles, kMostGroups, std::max<int64_t>(1, kMostGroupBytes / std::max<int64_t>(bytes, 1))});
  }
  const Workspace sums(static_cast<int>(groups), accumulates ? views_.shared_values * int64_t{sizeof(double)} : 0);
  const int workers = worker_count(groups);
  const Workspace memory(workers, kernel({&phase_, 0, 0, nullptr, nullptr}));
  parallel_run(groups, workers, [&](int64_t group, int worker) {
    double* own = static_cast<double*>(sums.of(static_cast<int>(group)));
    if (accumulates) std::fill(own, own + views_.shared_values, 0.0);
    kernel({&phase_, group * tiles / groups, (group + 1) * tiles / groups, memory.of(worker), own});
  });
  if (accumulates) write_shared_grads(sums, static_cast<int>(groups));
}

// Adds up the groups, in order, and puts the sums of each operand into its gradient.
void BoundPhase::write_shared_grads(const Workspace& sums, int groups) {
  const auto operands = static_cast<int64_t>(views_.accumulated.size());
  parallel_run(operands, worker_count(operands), [&](int64_t operand, int) {
    std::vector<double> total;
    for (int32_t number : views_.accumulated[operand]) {
      const ContractionShared& shared = views_.shared[number];
      const ContractionFactor& factor = factors_[shared.factor];
      if (factor.grad == nullptr) continue;
      const ContractionMessage& m = phase_.shape.message[shared.message];
      total.assign(static_cast<size_t>(m.slices * m.elements), 0.0);
      for (int group = 0; group < groups; ++group) {
        const double* own = static_cast<const double*>(sums.of(group)) + shared.value_at;
        for (size_t i = 0; i < total.size(); ++i) total[i] += own[i];
      }
      if (factor.grad_view.is_double) {
        write_sums(m, factor.grad_view, shared.adds, total.data(), static_cast<double*>(factor.grad));
      } else {
        write_sums(m, factor.grad_view, shared.adds, total.data(), static_cast<float*>(factor.grad));
      }
    }
  });
}

void BoundPhase::add_partials() {
  std::fill(reduced_.begin(), reduced_.end(), 0.0);
  // In the order of the tiles: the sum does not depend on the threads.
  for (size_t i = 0; i < partial_.size();) {
    for (double& sum : reduced_) sum += partial_[i++];
  }
}

// ---- a component ----------------------------------------------------------------------------

ComponentRun::ComponentRun(const CompiledComponent& compiled, const ComponentViews& views,
                           const std::vector<OperandData>& operands, bool is_double)
    : compiled_(compiled) {
  if (compiled.inner != nullptr) {
    inner_ = std::make_unique<BoundPhase>(*compiled.inner, *views.inner, operands, is_double);
    reduced_grad_.resize(inner_->reduced().size());
  }
  if (compiled.outer != nullptr) {
    outer_ = std::make_unique<BoundPhase>(*compiled.outer, *views.outer, operands, is_double);
  }
  if (inner_ != nullptr && outer_ != nullptr) {
    outer_->bind_links(compiled.inner->reduced(), inner_->reduced().data(), reduced_grad_.data());
  }
}

void ComponentRun::forward(void* result, bool max_plus) {
  last().bind_result(compiled_.component.result, result);
  for (BoundPhase* phase : {inner_.get(), outer_.get()}) {
    if (phase == nullptr) continue;
    phase->set_max_plus(max_plus);
    phase->run_forward();
  }
}

void ComponentRun::backward(const void* result_grad, const SlotLayout& layout) {
  last().bind_result_grad(compiled_.component.result, result_grad, layout);
  if (outer_ != nullptr) {
    if (inner_ != nullptr) inner_->run_forward();
    outer_->run_backward(nullptr);
  }
  if (inner_ != nullptr) inner_->run_backward(reduced_grad_.data());
}

void ComponentRun::draw(void* result, const std::vector<VariableValues>& values,
                        const std::vector<const double*>& uniform, bool maximise) {
  last().bind_result(compiled_.component.result, result);
  for (BoundPhase* phase : {inner_.get(), outer_.get()}) {
    if (phase == nullptr) continue;
    phase->set_max_plus(maximise);
    phase->bind_draws(values, uniform);
  }
  if (outer_ != nullptr) {
    if (inner_ != nullptr) inner_->run_forward();
    outer_->run_draw();
  }
  if (inner_ != nullptr) inner_->run_draw();
}

}  // namespace sumprod
