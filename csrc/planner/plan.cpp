#include "planner/plan.h"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <utility>

#include "planner/dims.h"
#include "planner/elimination.h"

namespace sumprod::planner {
namespace {

constexpr std::array kHeuristics = {Heuristic::kSmallestResult, Heuristic::kLeastGrowth, Heuristic::kMinFill};
constexpr std::size_t kFewFactors = 64;
constexpr std::uint64_t kPerturbedOrders = 32;

// Groups of items that share a key, by union-find over the items.
class Groups {
 public:
  explicit Groups(std::size_t count) : parent_(count) { std::iota(parent_.begin(), parent_.end(), 0); }

  std::size_t root(std::size_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }

  // The smaller number becomes the root, so that groups come out in the order of their first items.
  void join(std::size_t a, std::size_t b) {
    a = root(a);
    b = root(b);
    parent_[std::max(a, b)] = std::min(a, b);
  }

 private:
  std::vector<std::size_t> parent_;
};

// Splits terms into groups that the given variables connect, in order of first appearance.
std::vector<std::vector<Term>> connected(const std::vector<Term>& terms, const Dims& variables) {
  Groups groups(terms.size());
  std::map<Dim, std::size_t> first;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    for (Dim dim : intersect(terms[i].dims, variables)) {
      groups.join(first.emplace(dim, i).first->second, i);
    }
  }
  std::map<std::size_t, std::vector<Term>> by_root;
  for (std::size_t i = 0; i < terms.size(); ++i) by_root[groups.root(i)].push_back(terms[i]);
  std::vector<std::vector<Term>> out;
  for (auto& [root, group] : by_root) out.push_back(std::move(group));
  return out;
}

class Planner {
 public:
  Planner(const Graph& graph, const Order& order) : graph_(graph), order_(order) {
    for (Dim dim = 0; dim < static_cast<Dim>(graph.sizes.size()); ++dim) {
      (graph.is_plate[dim] ? plates_ : variables_).push_back(dim);
    }
    summed_ = subtract(variables_, graph.kept);
    slots_ = static_cast<std::int32_t>(graph.factors.size());
  }

  Plan run() {
    std::vector<Term> terms;
    for (std::size_t i = 0; i < graph_.factors.size(); ++i) {
      terms.push_back({static_cast<std::int32_t>(i), graph_.factors[i]});
    }
    home_ = homes(terms);
    for (const auto& [variable, plates] : home_) {
      if (contains(graph_.kept, variable)) check_kept(variable, plates);
    }
    // Kept variables connect nothing: what they join is multiplied by the caller.
    for (const auto& component : connected(terms, summed_)) {
      plan_.results.push_back(contract(component).slot);
    }
    plan_.peak_elements = peak();
    return std::move(plan_);
  }

 private:
  Dims plates_of(const Dims& dims) const { return intersect(dims, plates_); }

  // Where each variable lives: the plates that all its factors are in.
  std::map<Dim, Dims> homes(const std::vector<Term>& terms) const {
    std::map<Dim, Dims> homes;
    for (const Term& term : terms) {
      const Dims plates = plates_of(term.dims);
      for (Dim variable : intersect(term.dims, variables_)) {
        auto [found, fresh] = homes.emplace(variable, plates);
        if (!fresh) found->second = intersect(found->second, plates);
      }
    }
    return homes;
  }

  // Reduces one connected component to one term.
  Term contract(const std::vector<Term>& component) {
    Dims base = intersect(graph_.kept, plates_);
    Dims common = plates_of(component.front().dims);
    for (const Term& term : component) common = intersect(common, plates_of(term.dims));
    if (graph_.keep_common_plates) base = unite(base, common);
    std::map<Dims, std::vector<Term>> tree;  // terms by plate context
    for (const Term& term : component) tree[plates_of(term.dims)].push_back(term);
    while (true) {
      auto leaf = deepest(tree);
      const Dims context = leaf->first;
      const std::vector<Term> terms = std::move(leaf->second);
      tree.erase(leaf);
      Dims local;
      for (const Term& term : terms) {
        for (Dim variable : intersect(term.dims, summed_)) {
          if (home_.at(variable) == context) local.push_back(variable);
        }
      }
      std::sort(local.begin(), local.end());
      local.erase(std::unique(local.begin(), local.end()), local.end());
      std::vector<Term> reduced;
      for (const auto& group : connected(terms, local)) reduced.push_back(eliminate_group(group, local));
      if (tree.empty() && is_subset(context, base)) return finish(std::move(reduced), context);
      for (Term& term : reduced) {
        const Dims parent = parent_of(term, context, base);
        if (parent == context && tree.empty()) return finish(std::move(reduced), context);
        if (parent == context) refuse(term, context);
        tree[parent].push_back(reduce_plates(term, subtract(context, parent)));
      }
    }
  }

  Term eliminate_group(const std::vector<Term>& group, const Dims& local) {
    const std::size_t before = plan_.steps.size();
    Term term = eliminate(graph_, group, local, order_, slots_, plan_.steps, plan_.flops);
    slots_ += static_cast<std::int32_t>(plan_.steps.size() - before);
    return term;
  }

  // The plate context in which a term waits for the variables that it still contains.
  Dims parent_of(const Term& term, const Dims& context, const Dims& base) const {
    Dims parent = intersect(context, base);
    for (Dim variable : intersect(term.dims, variables_)) parent = unite(parent, home_.at(variable));
    return parent;
  }

  // The context with the most plates; among equals the one that sorts first, so that plans repeat.
  static std::map<Dims, std::vector<Term>>::iterator deepest(std::map<Dims, std::vector<Term>>& tree) {
    auto best = tree.begin();
    for (auto it = tree.begin(); it != tree.end(); ++it) {
      if (it->first.size() > best->first.size()) best = it;
    }
    return best;
  }

  Term reduce_plates(Term term, const Dims& plates) {
    const Dims reduced = intersect(term.dims, plates);
    if (reduced.empty()) return term;
    Step step;
    step.inputs = {term.slot};
    step.plates = reduced;
    step.dims = subtract(term.dims, reduced);
    plan_.flops += volume(graph_, term.dims);
    plan_.steps.push_back(step);
    return {slots_++, step.dims};
  }

  // Multiplies the last terms of a component and reduces the plates that the result does not keep.
  Term finish(std::vector<Term> terms, const Dims& context) {
    const Dims base = graph_.keep_common_plates ? context : intersect(graph_.kept, plates_);
    for (Term& term : terms) term = reduce_plates(term, subtract(plates_of(term.dims), base));
    if (terms.size() == 1) return terms.front();
    return append_step(graph_, terms, {}, slots_++, plan_.steps, plan_.flops);
  }

  void check_kept(Dim variable, const Dims& home) const {
    const Dims missing = subtract(home, graph_.kept);
    if (missing.empty()) return;
    throw std::invalid_argument("the result keeps '" + graph_.names[variable] +
                                "', of which there is one per slice of " + list(missing) + ": keep these plates too");
  }

  [[noreturn]] void refuse(const Term& term, const Dims& context) const {
    Dims pending;
    for (Dim variable : intersect(term.dims, variables_)) pending.push_back(variable);
    std::string where;
    for (Dim variable : pending) {
      where += "; '" + graph_.names[variable] + "' lives in " + list(home_.at(variable));
    }
    throw NotTreeStructured("Expected tree-structured plate nesting, but variables in " + list(context) +
                            " connect ones that live in different parts of it" + where +
                            ": exact elimination would take time exponential in the plates' sizes");
  }

  std::string list(const Dims& plates) const {
    if (plates.empty()) return "no plate";
    std::string text = plates.size() == 1 ? "plate " : "plates ";
    for (std::size_t i = 0; i < plates.size(); ++i) text += (i ? ", '" : "'") + graph_.names[plates[i]] + "'";
    return text;
  }

  // Elements of intermediate tensors alive at one time, freeing each after its last use.
  std::int64_t peak() const {
    const auto factors = static_cast<std::int32_t>(graph_.factors.size());
    std::vector<std::int64_t> last(static_cast<std::size_t>(slots_), -1);
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      for (std::int32_t slot : plan_.steps[i].inputs) last[slot] = static_cast<std::int64_t>(i);
    }
    for (std::int32_t slot : plan_.results) last[slot] = static_cast<std::int64_t>(plan_.steps.size());
    double alive = 0, most = 0;
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      alive += volume(graph_, plan_.steps[i].dims);
      most = std::max(most, alive);
      for (std::int32_t slot : plan_.steps[i].inputs) {
        if (slot >= factors && last[slot] == static_cast<std::int64_t>(i)) {
          alive -= volume(graph_, plan_.steps[slot - factors].dims);
        }
      }
    }
    return static_cast<std::int64_t>(std::min(most, 9.2e18));
  }

  const Graph& graph_;
  const Order order_;
  Dims plates_, variables_, summed_;
  std::map<Dim, Dims> home_;  // of each variable: the plates that all its factors are in
  std::int32_t slots_ = 0;    // number of the next output
  Plan plan_;
};

}  // namespace

Plan make_plan(const Graph& graph) {
  Plan best;
  bool first = true;
  const auto attempt = [&](const Order& order) {
    Plan plan = Planner(graph, order).run();
    const bool better =
        plan.flops < best.flops || (plan.flops == best.flops && plan.peak_elements < best.peak_elements);
    if (first || better) best = std::move(plan);
    first = false;
  };
  for (Heuristic heuristic : kHeuristics) attempt({heuristic});
  // Small graphs are planned in microseconds, and there a greedy order is most often not the best.
  if (graph.factors.size() <= kFewFactors) {
    for (std::uint64_t seed = 1; seed <= kPerturbedOrders; ++seed) {
      attempt({kHeuristics[seed % kHeuristics.size()], seed});
    }
  }
  return best;
}

}  // namespace sumprod::planner
