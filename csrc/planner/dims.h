// Sets of dims as sorted vectors.
#pragma once

#include <algorithm>
#include <iterator>

#include "planner/plan.h"

namespace sumprod::planner {

inline bool contains(const Dims& set, Dim dim) { return std::binary_search(set.begin(), set.end(), dim); }

inline bool is_subset(const Dims& part, const Dims& whole) {
  return std::includes(whole.begin(), whole.end(), part.begin(), part.end());
}

inline Dims unite(const Dims& a, const Dims& b) {
  Dims out;
  out.reserve(a.size() + b.size());
  std::set_union(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

// By looking up the fewer dims among the more: one side is often a factor, the other all variables.
inline Dims intersect(const Dims& a, const Dims& b) {
  const Dims& fewer = a.size() < b.size() ? a : b;
  const Dims& more = a.size() < b.size() ? b : a;
  Dims out;
  for (Dim dim : fewer) {
    if (contains(more, dim)) out.push_back(dim);
  }
  return out;
}

inline Dims subtract(const Dims& a, const Dims& b) {
  Dims out;
  out.reserve(a.size());
  std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

// As a floating-point number: a product of sizes may exceed 64 bits before the order is chosen.
inline double volume(const Graph& graph, const Dims& dims) {
  double product = 1;
  for (Dim dim : dims) product *= static_cast<double>(graph.sizes[dim]);
  return product;
}

}  // namespace sumprod::planner
