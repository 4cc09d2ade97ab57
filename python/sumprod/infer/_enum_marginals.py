"""Posterior marginals of enumerated sites, all from one elimination."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions import Bernoulli, Categorical, FiniteSupport, OneHotCategorical
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_sites import Term, align, support_size, unmasked, variable_of
from sumprod.settings import state

__all__ = ["site_marginals"]


def site_marginals(graph: FactorGraph, trace: Trace, known: Container[str]) -> OrderedDict[str, Any]:
    """name -> posterior marginal of each enumerated site of a trace that is not `known`, in its order.

    The gradient of the log total with respect to a log-factor of zeros over a site's values is the posterior
    probability of each.

    Raises:
        SupportError: no assignment of the variables is possible (when validating).
    """
    probabilities = _factor_marginals(graph)
    found: OrderedDict[str, Any] = OrderedDict()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name not in known and "_enumerate_dim" in site["infer"]:
            variable = variable_of(site)
            plates, probs = probabilities[name] if variable is not None else _certainty(site)
            found[name] = _marginal(site, plates, probs)
    return found


def _factor_marginals(graph: FactorGraph) -> dict[str, tuple[tuple[Any, ...], Tensor]]:
    """Name of each enumerated site -> its plates, and its values' probabilities along the last dim."""
    if not graph.terms:
        return {}
    differentiable = torch.is_grad_enabled() and any(term.tensor.requires_grad for term in graph.terms)
    if not differentiable:
        graph.terms = [term._replace(tensor=term.tensor.detach()) for term in graph.terms]
    owners = [site for site in graph.variables.values() if "_auxiliary" not in site["infer"]]
    with torch.enable_grad():
        units = [_unit(site, graph.terms[0].tensor) for site in owners]
        for site, unit in zip(owners, units, strict=True):
            graph.add(site, unit)
        totals = [total for _, total in graph.totals()]
        if state.validate_infer and any(bool((total == -torch.inf).any()) for total in totals):
            raise graph.blame()
        gradients = torch.autograd.grad(
            [total.sum() for total in totals], [unit.tensor for unit in units], create_graph=differentiable
        )
    return {
        site["name"]: (unit.dims[:-1], gradient)
        for site, unit, gradient in zip(owners, units, gradients, strict=True)
    }


def _unit(site: Any, like: Tensor) -> Term:
    """A factor of one over the values of an enumerated site, in all slices of its plates."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.dim is not None]
    sizes = {frame.name: frame.size for frame in frames if frame.size > 1}
    size = support_size(site)
    assert size is not None
    zeros = like.new_zeros([*sizes.values(), size]).requires_grad_()
    return Term(frozenset(frame.name for frame in frames), (*sizes, variable_of(site)), zeros)


def _certainty(site: Any) -> tuple[tuple[Any, ...], Tensor]:
    """The plates and the probability of the only value of a site."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.dim is not None and frame.size > 1]
    probs = torch.ones([*(frame.size for frame in frames), 1], device=site["value"].device)
    return tuple(frame.name for frame in frames), probs


def _marginal(site: Any, plates: tuple[Any, ...], probs: Tensor) -> Any:
    frames = {frame.name: frame for frame in site["cond_indep_stack"] if frame.dim is not None}
    rank = max((-frame.dim for frame in frames.values()), default=0)
    order = tuple(sorted(plates, key=lambda name: frames[name].dim))
    probs = align(probs, (*plates, None), (*order, None))
    shape = [1] * rank
    for name, size in zip(order, probs.shape, strict=False):
        shape[frames[name].dim] = size
    # Rounding leaves the sum within a few units of 1; a total of 0 (impossible) goes to the first value.
    probs = probs.clamp(min=0.0)
    total = probs.sum(-1, keepdim=True)
    first = torch.zeros_like(probs)
    first[..., 0] = 1.0
    probs = torch.where(total > 0, probs / torch.where(total > 0, total, 1.0), first)
    probs = probs.reshape([*shape, probs.shape[-1]])
    return _of_family(unmasked(site["fn"]), site, probs)


def _of_family(fn: Any, site: Any, probs: Tensor) -> Any:
    positive = probs > 0
    logits = torch.where(positive, torch.where(positive, probs, 1.0).log(), -torch.inf)
    if isinstance(fn, Categorical | torch.distributions.Categorical):
        return Categorical(logits=logits)
    if isinstance(fn, OneHotCategorical | torch.distributions.OneHotCategorical):
        return OneHotCategorical(logits=logits)
    if isinstance(fn, Bernoulli | torch.distributions.Bernoulli) and probs.shape[-1] == 2:
        return Bernoulli(probs=probs[..., 1])
    values = fn.enumerate_support(expand=False)
    event = len(fn._event_shape)
    rank = probs.dim() - 1
    batch = values.shape[1 : values.dim() - event]
    outer = len(batch) - rank
    if any(size != 1 for size in batch[: max(outer, 0)]):
        raise NotImplementedError(
            f"site '{site['name']}': the support of {type(fn).__name__} depends on another enumerated site,"
            " so that it has no marginal over one list of values"
        )
    own = batch[max(outer, 0) :] if any(size != 1 for size in batch) else ()
    values = values.reshape(values.shape[:1] + own + fn._event_shape)
    return FiniteSupport(values.movedim(0, len(own)), logits, event)
