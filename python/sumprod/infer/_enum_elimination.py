"""From a factor graph to terms of log p: scales, and elimination beside variables of the guide."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from sumprod.handlers.trace_struct import Trace
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_sites import Names, Term, align, ordinal_of, site_term, variable_of
from sumprod.infer.util import torch_item
from sumprod.ops.contraction import contract

__all__ = ["eliminate", "is_one", "scaled", "shared_scale"]


def is_one(scale: Any) -> bool:
    return not isinstance(scale, Tensor) and scale == 1.0


def scaled(site: Any, term: Term) -> Term:
    scale = site["scale"]
    if is_one(scale):
        return term
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return term._replace(tensor=term.tensor * scale)
    factor = site_term({**site, "cond_indep_stack": _frames_of(site, scale)}, scale)
    order = tuple(dict.fromkeys((*term.dims, *factor.dims)))
    product = align(term.tensor, term.dims, order) * align(factor.tensor, factor.dims, order)
    return Term(term.ordinal, order, product)


def _frames_of(site: Any, tensor: Tensor) -> tuple[Any, ...]:
    """The site's plates along which a tensor varies."""
    return tuple(
        frame
        for frame in site["cond_indep_stack"]
        if frame.dim is not None and tensor.dim() >= -frame.dim and tensor.shape[frame.dim] > 1
    )


def shared_scale(graph: FactorGraph) -> Any:
    """The one scale of all sites that depend on enumerated variables."""
    scale: Any = None
    first: Any = None
    for site in graph.sites:
        own = site["scale"]
        if isinstance(own, Tensor) and own.numel() != 1:
            raise ValueError(
                f"enumeration only supports scalar poutine.scale, but site '{site['name']}' has a scale of"
                f" shape {tuple(own.shape)}"
            )
        if first is None:
            scale, first = own, site
        elif own is not scale and own != scale:
            raise ValueError(
                "Expected all enumerated sample sites to share a common poutine.scale, but found"
                f" {torch_item(scale):g} at site '{first['name']}' and {torch_item(own):g} at site"
                f" '{site['name']}'. An enumerated site outside a subsampled plate, with observations inside,"
                " does this: move the enumerated site into the plate, or use subsample_size=None"
            )
    return scale.reshape(()) if isinstance(scale, Tensor) else scale


def eliminate(graph: FactorGraph, guide_trace: Trace) -> list[Term]:
    """What is left of the factors when the model's variables are summed out, component by component."""
    owners = {
        variable_of(site): site
        for site in guide_trace.nodes.values()
        if site["type"] == "sample" and not site["is_observed"]
    }
    if not any(name in owners for term in graph.terms for name in term.dims):
        # In one call: what is left has no dims but plates.
        return [Term(frozenset(dims), dims, total) for dims, total in graph.totals(keep_common_plates=True)]
    left = []
    for members in graph.components():
        terms = [graph.terms[i] for i in members]
        common = frozenset.intersection(*(term.ordinal for term in terms))
        outer = tuple(dict.fromkeys(name for term in terms for name in term.dims if name in owners))
        for name in outer:
            owner = owners[name]
            if not ordinal_of(owner) <= common:
                raise ValueError(
                    "Expected model enumeration to be no more global than guide enumeration, but site"
                    f" '{owner['name']}' is enumerated in the guide inside plates"
                    f" {sorted(map(str, ordinal_of(owner) - common))}, and the model's enumerated sites"
                    f" {[graph.sites[i]['name'] for i in members if graph.terms[i].dims]} are not all inside"
                )
        left.append(_eliminate_beside(terms, outer, graph, common))
    return left


def _eliminate_beside(
    terms: list[Term], outer: Names, graph: FactorGraph, common: frozenset[Hashable]
) -> Term:
    """The same for one component that depends on variables `outer` of the guide.

    Each assignment of those is a slice of its own, as if they were plates around everything.
    """
    sizes = {name: size for term in terms for name, size in zip(term.dims, term.tensor.shape, strict=True)}
    tensors, dims = [], []
    for term in terms:
        order = outer + tuple(name for name in term.dims if name not in outer)
        tensors.append(align(term.tensor, term.dims, order).expand([sizes[name] for name in order]))
        dims.append(order)
    [(found, total)] = contract(tensors, dims, [*graph.plates, *outer], keep_common_plates=True)
    return Term(common, found, total)
