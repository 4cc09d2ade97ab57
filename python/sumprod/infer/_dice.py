"""Expectations under a guide some of whose sites are enumerated and others sampled.

Each guide site that is not reparameterised contributes a log-factor. Enumerated in parallel, that is its
log-probability: costs are averaged over its values. Sampled, it is log q - detach(log q): zero, with the
gradient of the score function, so that derivatives of any order of the estimate are right.

A cost is weighted by the factors of the sites in the same plates and outside, since sites in other
elements of a plate do not influence it.

References:
    Foerster et al. 2018, "DiCE: The Infinitely Differentiable Monte Carlo Estimator".
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod.distributions.util import is_identically_zero
from sumprod.handlers.trace_struct import sum_tensors
from sumprod.infer._enum_sites import Names, Term, align
from sumprod.ops.contraction import contract

__all__ = ["Dice", "Factor", "compute_site_dice_factor", "expectation"]

Ordinal = frozenset[Hashable]

_SMALL = 4096  # entries; copying larger costs into one tensor takes longer than summing them one by one


class Factor(NamedTuple):
    """How a guide site weights costs."""

    ordinal: Ordinal
    dims: Names
    log_prob: Tensor
    log_denom: float = 0.0  # divides costs that the site does not influence, in sequential enumeration
    normalized: Hashable | None = None  # the variable that exp(log_prob) sums to one over


def expectation(factors: Sequence[Factor], costs: Iterable[Term]) -> Tensor | float:
    """The sum over the costs of their expectations: a scalar; 0.0 without costs."""
    terms: list[Any] = []
    plain: dict[Any, list[Tensor]] = {}
    cache: dict[Any, tuple[Names, Tensor] | None] = {}
    for cost in costs:
        key = (cost.ordinal, cost.reach, frozenset(cost.dims))
        if key not in cache:
            cache[key] = _weight(factors, cost)
        weight = cache[key]
        log_denom = sum(factor.log_denom for factor in factors if not factor.ordinal <= cost.ordinal)
        if weight is None and not log_denom:
            plain.setdefault((cost.tensor.shape, cost.tensor.dtype, cost.tensor.device), []).append(
                cost.tensor
            )
        else:
            terms.append(_weighted_sum(cost, weight, log_denom))
    for group in plain.values():
        if len(group) > 2 and group[0].numel() <= _SMALL:
            group = [torch.stack(group)]
        terms.extend(cost.sum() if cost.dim() else cost for cost in group)
    return sum_tensors(terms)


def _weighted_sum(cost: Term, weight: tuple[Names, Tensor] | None, log_denom: float) -> Tensor:
    if weight is None:
        return cost.tensor.sum() * math.exp(-log_denom)
    dims, log_prob = weight
    order = tuple(dict.fromkeys((*cost.dims, *dims)))
    prob = (align(log_prob, dims, order) - log_denom).exp()
    values = align(cost.tensor, cost.dims, order)
    # What has probability zero does not count, whatever its cost: 0 * -inf is 0, in gradients too.
    possible = prob > 0
    product = torch.where(possible, prob, 0.0) * torch.where(possible, values, 0.0)
    return product.sum()


def _weight(factors: Sequence[Factor], cost: Term) -> tuple[Names, Tensor] | None:
    """The log of the weight of each entry of a cost; None: no factor has a say."""
    relevant = [factor for factor in factors if factor.ordinal <= cost.ordinal]
    relevant = _prune(relevant, set(cost.dims)) + _from_inside(factors, cost)
    if not relevant:
        return None
    plates = cost.ordinal
    names = tuple(dict.fromkeys(name for factor in relevant for name in factor.dims))
    summed = [name for name in names if name not in cost.dims and name not in plates]
    if not summed:
        total: Any = 0.0
        for factor in relevant:
            total = total + align(factor.log_prob, factor.dims, names)
        return names, total
    # All factors in all plates: each slice is then summed by itself.
    common = tuple(name for name in names if name in plates)
    tensors, dims = [], []
    for factor in relevant:
        order = common + tuple(name for name in factor.dims if name not in plates)
        tensors.append(align(factor.log_prob, factor.dims, order))
        dims.append(order)
    kept = [name for name in names if name in cost.dims or name in plates]
    results = contract(tensors, dims, plates=common, kept=kept)
    order = tuple(dict.fromkeys(name for found, _ in results for name in found))
    return order, sum((align(value, found, order) for found, value in results), torch.zeros(()))


def _from_inside(factors: Sequence[Factor], cost: Term) -> list[Factor]:
    """Scores of sampled sites in plates that a cost has been multiplied along, summed along these."""
    reach, found = cost.reach or frozenset(), []
    for factor in factors:
        sampled = factor.ordinal.issuperset(factor.dims) and not factor.log_denom
        if sampled and factor.ordinal <= reach and not factor.ordinal <= cost.ordinal:
            left = tuple(name for name in factor.dims if name in cost.ordinal)
            inner = [i for i, name in enumerate(factor.dims) if name not in left]
            found.append(Factor(cost.ordinal, left, factor.log_prob.sum(inner) if inner else factor.log_prob))
    return found


def _prune(factors: list[Factor], wanted: set[Hashable]) -> list[Factor]:
    """Without the factors that sum to one: their variable is in no other factor and not wanted."""
    counts: dict[Hashable, int] = {}
    for factor in factors:
        for name in factor.dims:
            counts[name] = counts.get(name, 0) + 1
    kept = []
    for factor in reversed(factors):  # the last site first: nothing depends on it
        own = factor.normalized
        if own is not None and own not in wanted and counts[own] == 1:
            for name in factor.dims:
                counts[name] -= 1
        else:
            kept.append(factor)
    return kept[::-1]


# ---- the interface for losses that work with packed traces


def compute_site_dice_factor(site: Any) -> tuple[Any, float]:
    """(log factor, log denominator) of a guide site of a packed trace with score parts.

    The log factor is packed; 0.0 when the site is reparameterised.
    """
    score = site["packed"]["score_parts"].score_function
    infer = site["infer"]
    dims = getattr(score, "_pyro_dims", "")
    log_denom = 0.0
    strategy, count = infer.get("enumerate"), infer.get("num_samples")
    exact = bool(strategy) and count is None
    if strategy == "sequential":
        log_denom = math.log(infer["_enum_total"])
    if exact:
        return score, log_denom
    factor = score if is_identically_zero(score) else score - score.detach()
    if count is not None and infer.get("_enumerate_dim") is not None:
        if not isinstance(factor, Tensor):
            value = site["packed"]["log_prob"]
            dims = value._pyro_dims
            factor = torch.zeros_like(value)
        factor = factor - math.log(count)
    if isinstance(factor, Tensor):
        factor._pyro_dims = dims  # type: ignore[attr-defined]
    return factor, log_denom


class Dice:
    """Weights costs by the sites of a guide trace, which must be packed and have score parts.

    Args:
        guide_trace: the trace.
        ordering: site name -> ordinal, the frozenset of the symbols of its plates.
    """

    def __init__(self, guide_trace: Any, ordering: Mapping[str, Ordinal]) -> None:
        self._factors: list[Factor] = []
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample":
                continue
            log_prob, log_denom = compute_site_dice_factor(site)
            if is_identically_zero(log_prob) and not log_denom:
                continue
            if not isinstance(log_prob, Tensor):
                log_prob = torch.tensor(float(log_prob))
            dims = tuple(getattr(log_prob, "_pyro_dims", ""))
            self._factors.append(Factor(ordering[name], dims, log_prob, log_denom))

    def compute_expectation(self, costs: Mapping[Ordinal, Sequence[Any]]) -> Tensor | float:
        """The expectation of the sum of packed costs, given by ordinal."""
        terms = []
        for ordinal, group in costs.items():
            for cost in group:
                tensor = cost if isinstance(cost, Tensor) else torch.tensor(float(cost))
                terms.append(Term(frozenset(ordinal), tuple(getattr(cost, "_pyro_dims", "")), tensor))
        return expectation(self._factors, terms)
