#include "planner/elimination.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <map>
#include <queue>
#include <tuple>

#include "planner/dims.h"

namespace sumprod::planner {
namespace {

constexpr std::size_t kManyFactors = 32;
constexpr std::size_t kManyNeighbours = 64;

// A number that looks random, from a variable and a seed (Steele et al. 2014, splitmix64).
double noise(Dim variable, std::uint64_t seed) {
  std::uint64_t x = (seed << 32) + static_cast<std::uint64_t>(variable) + 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

// The factors still to be multiplied, by number, and which of them each variable occurs in.
class Bucket {
 public:
  Bucket(const Graph& graph, std::vector<Term> terms, const Dims& variables)
      : graph_(graph), terms_(std::move(terms)), variables_(variables) {
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(terms_.size()); ++i) attach(i);
  }

  const std::vector<std::int32_t>& factors_of(Dim variable) const { return factors_of_.at(variable); }
  const Term& term(std::int32_t i) const { return terms_[i]; }

  // The dims of the product of all factors that contain the variable.
  Dims scope(Dim variable) const {
    Dims dims;
    for (std::int32_t i : factors_of(variable)) {
      dims.insert(dims.end(), terms_[i].dims.begin(), terms_[i].dims.end());
    }
    std::sort(dims.begin(), dims.end());
    dims.erase(std::unique(dims.begin(), dims.end()), dims.end());
    return dims;
  }

  // The variables of `scope` that no factor outside those of `variable` contains: summing them in the
  // same step costs nothing extra.
  Dims summed_together(Dim variable, const Dims& scope) const {
    const auto& own = factors_of(variable);
    Dims out;
    for (Dim dim : scope) {
      auto found = factors_of_.find(dim);
      if (found == factors_of_.end() || found->second.size() > own.size()) continue;
      if (is_subset(found->second, own)) out.push_back(dim);
    }
    return out;
  }

  void remove(std::int32_t i) {
    for (Dim dim : terms_[i].dims) {
      auto found = factors_of_.find(dim);
      if (found == factors_of_.end()) continue;
      auto& list = found->second;
      list.erase(std::lower_bound(list.begin(), list.end(), i));
      if (list.empty()) factors_of_.erase(found);
    }
  }

  void add(Term term) {
    terms_.push_back(std::move(term));
    attach(static_cast<std::int32_t>(terms_.size()) - 1);
  }

  bool has(Dim variable) const { return factors_of_.count(variable) != 0; }

  // The factor added last: what the others have been multiplied into.
  const Term& last() const { return terms_.back(); }

  double score(Dim variable, const Order& order) const {
    const double exact = plain_score(variable, order.heuristic);
    // Between half and twice the score.
    return order.seed == 0 ? exact : exact * std::exp2(2 * noise(variable, order.seed) - 1);
  }

 private:
  double plain_score(Dim variable, Heuristic heuristic) const {
    const Dims dims = scope(variable);
    const Dims result = subtract(dims, summed_together(variable, dims));
    switch (heuristic) {
      case Heuristic::kSmallestResult:
        return volume(graph_, result);
      case Heuristic::kLeastGrowth: {
        double consumed = 0;
        for (std::int32_t i : factors_of(variable)) consumed += volume(graph_, terms_[i].dims);
        return volume(graph_, result) - consumed;
      }
      case Heuristic::kMinFill:
        return static_cast<double>(fill(variable, dims));
    }
    return 0;
  }

  void attach(std::int32_t i) {
    // Numbers only grow, so that each list stays sorted.
    for (Dim dim : intersect(terms_[i].dims, variables_)) factors_of_[dim].push_back(i);
  }

  // Pairs of the variable's neighbours that share no factor yet.
  std::int64_t fill(Dim variable, const Dims& scope) const {
    if (scope.size() > kManyNeighbours) return static_cast<std::int64_t>(scope.size() * scope.size());
    std::int64_t missing = 0;
    for (std::size_t a = 0; a < scope.size(); ++a) {
      if (scope[a] == variable) continue;
      for (std::size_t b = a + 1; b < scope.size(); ++b) {
        if (scope[b] != variable && !adjacent(scope[a], scope[b])) ++missing;
      }
    }
    return missing;
  }

  bool adjacent(Dim a, Dim b) const {
    auto found = factors_of_.find(a);
    if (found == factors_of_.end()) return true;  // not eliminated here: no edge to count
    for (std::int32_t i : found->second) {
      if (contains(terms_[i].dims, b)) return true;
    }
    return false;
  }

  const Graph& graph_;
  std::vector<Term> terms_;
  const Dims& variables_;
  std::map<Dim, std::vector<std::int32_t>> factors_of_;
};

}  // namespace

Term append_step(const Graph& graph, const std::vector<Term>& inputs, Dims variables, std::int32_t slot,
                 std::vector<Step>& steps, double& flops) {
  Step step;
  Dims scope;
  for (const Term& term : inputs) {
    step.inputs.push_back(term.slot);
    scope = unite(scope, term.dims);
  }
  step.dims = subtract(scope, variables);
  step.variables = std::move(variables);
  // One product per input beyond the first, and one addition where something is summed.
  flops += volume(graph, scope) * static_cast<double>(inputs.size() - (step.variables.empty() ? 1 : 0));
  steps.push_back(step);
  return {slot, std::move(step.dims)};
}

namespace {

// Multiplies inputs whose product has fewer elements than the whole scope before the others: a vector
// times a vector costs less than a matrix times both.
void multiply_small(const Graph& graph, std::vector<Term>& inputs, const Dims& scope, std::int32_t& next_slot,
                    std::vector<Step>& steps, double& flops) {
  // Smallest first. Of thousands of inputs nearly all have the same dims, so looking at neighbours in
  // this order is enough, and pairs need not be compared with pairs.
  auto smaller = [&](const Term& a, const Term& b) {
    const double left = volume(graph, a.dims), right = volume(graph, b.dims);
    return left != right ? left < right : a.dims < b.dims;
  };
  const double whole = volume(graph, scope);
  std::stable_sort(inputs.begin(), inputs.end(), smaller);
  std::size_t i = 0;
  while (i + 1 < inputs.size()) {
    // The best partner for the smallest input; those with the very same dims all join at once.
    std::vector<Term> group{inputs[i]};
    std::size_t end = i + 1;
    while (end < inputs.size() && inputs[end].dims == inputs[i].dims) group.push_back(inputs[end++]);
    if (group.size() == 1) {
      std::size_t best = end;
      double least = volume(graph, unite(inputs[i].dims, inputs[end].dims));
      // Among thousands of inputs the next in size are as good as any.
      const std::size_t last = std::min(inputs.size(), end + kManyNeighbours);
      for (std::size_t j = end + 1; j < last; ++j) {
        const double size = volume(graph, unite(inputs[i].dims, inputs[j].dims));
        if (size < least) {
          least = size;
          best = j;
        }
      }
      if (least >= whole) {
        ++i;
        continue;
      }
      group.push_back(inputs[best]);
      inputs.erase(inputs.begin() + static_cast<std::ptrdiff_t>(best));
      end = i + 1;
    } else if (volume(graph, inputs[i].dims) >= whole) {
      break;
    }
    Term product = append_step(graph, group, {}, next_slot++, steps, flops);
    inputs.erase(inputs.begin() + static_cast<std::ptrdiff_t>(i), inputs.begin() + static_cast<std::ptrdiff_t>(end));
    inputs.insert(std::upper_bound(inputs.begin() + static_cast<std::ptrdiff_t>(i), inputs.end(), product, smaller),
                  product);
  }
}

}  // namespace

Term eliminate(const Graph& graph, std::vector<Term> terms, const Dims& variables, const Order& order,
               std::int32_t next_slot, std::vector<Step>& steps, double& flops) {
  Bucket bucket(graph, std::move(terms), variables);
  // Least score first, then least dim; an entry whose version is old is skipped when it comes up.
  using Entry = std::tuple<double, Dim, std::int32_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
  std::map<Dim, std::int32_t> version;
  std::map<Dim, bool> outdated;
  for (Dim variable : variables) {
    if (bucket.has(variable)) queue.emplace(bucket.score(variable, order), variable, 0);
  }
  while (!queue.empty()) {
    const auto [score, variable, written] = queue.top();
    queue.pop();
    if (!bucket.has(variable) || version[variable] != written) continue;
    if (outdated[variable]) {
      outdated[variable] = false;
      queue.emplace(bucket.score(variable, order), variable, ++version[variable]);
      continue;
    }
    const Dims scope = bucket.scope(variable);
    Dims summed = bucket.summed_together(variable, scope);
    std::vector<Term> inputs;
    const std::vector<std::int32_t> numbers = bucket.factors_of(variable);
    for (std::int32_t i : numbers) {
      inputs.push_back(bucket.term(i));
      bucket.remove(i);
    }
    multiply_small(graph, inputs, scope, next_slot, steps, flops);
    Term result = append_step(graph, inputs, std::move(summed), next_slot++, steps, flops);
    bucket.add(result);
    for (Dim neighbour : result.dims) {
      if (!bucket.has(neighbour)) continue;
      // Scoring looks at all of a variable's factors. One that thousands of others lead to would be
      // scored after each of them: its score waits until it comes up.
      if (bucket.factors_of(neighbour).size() > kManyFactors) {
        outdated[neighbour] = true;
      } else {
        queue.emplace(bucket.score(neighbour, order), neighbour, ++version[neighbour]);
      }
    }
  }
  return bucket.last();
}

}  // namespace sumprod::planner
