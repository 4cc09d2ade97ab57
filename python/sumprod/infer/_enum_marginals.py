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
from sumprod.infer._enum_sites import align, unmasked, variable_of
from sumprod.settings import state

__all__ = ["site_marginals"]


def site_marginals(graph: FactorGraph, trace: Trace, known: Container[str]) -> OrderedDict[str, Any]:
    """name -> posterior marginal of each enumerated site of a trace that is not `known`, in its order.

    The gradient of the log total with respect to a site's log-factor is the posterior probability of each
    of its entries.

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
    with torch.enable_grad():
        # A tensor of its own for each term, with a gradient for each slice of its plates.
        leaves = [
            term.tensor.expand(graph.shape(term))
            if differentiable and term.tensor.requires_grad
            else term.tensor.detach().expand(graph.shape(term)).requires_grad_()
            for term in graph.terms
        ]
        graph.terms = [term._replace(tensor=leaf) for term, leaf in zip(graph.terms, leaves, strict=True)]
        totals = [total for _, total in graph.totals()]
        if state.validate_infer and any(bool((total == -torch.inf).any()) for total in totals):
            raise graph.blame()
        gradients = torch.autograd.grad(
            [total.sum() for total in totals], leaves, create_graph=differentiable
        )
    owners = {site["name"] for site in graph.variables.values()}
    found = {}
    for site, term, gradient in zip(graph.sites, graph.terms, gradients, strict=True):
        variable = variable_of(site) if site["name"] in owners else None
        if variable is None:
            continue
        plates = tuple(name for name in term.dims if name in graph.plates)
        others = [i for i, name in enumerate(term.dims) if name != variable and name not in plates]
        dims = tuple(name for name in term.dims if name == variable or name in plates)
        joint = gradient.sum(others) if others else gradient
        found[site["name"]] = plates, align(joint, dims, (*plates, variable))
    return found


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
