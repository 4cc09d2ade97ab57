"""From a factor graph to terms of log p: scales, and elimination beside variables of the guide."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor

from sumprod.handlers.trace_struct import Trace
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_sites import Names, Term, align, ordinal_of, site_term, variable_of
from sumprod.infer.util import has_default_score_parts, torch_item

__all__ = ["Contraction", "contractions", "eliminate", "is_one", "scaled", "shared_scale"]


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


class Contraction(NamedTuple):
    """Terms of a graph that are contracted in one call."""

    members: list[int]  # their positions
    dims: list[Names]
    plates: list[Hashable]
    outer: Names = ()  # variables of the guide: each assignment of those is a slice, as in a plate around all
    common: frozenset[Hashable] = frozenset()  # plates that all are in
    reach: frozenset[Hashable] | None = None  # plates that any is in; None: these are several components


def contractions(graph: FactorGraph, guide_trace: Trace) -> list[Contraction]:
    """How the model's variables are summed out: all at once, or by component beside the guide's sites.

    Raises:
        ValueError: a variable of the model is outside of a plate that one of the guide is in.
    """
    assert not graph.chains, "chains are summed out or written out before"
    terms = graph.terms
    sites = [
        site for site in guide_trace.nodes.values() if site["type"] == "sample" and not site["is_observed"]
    ]
    owners = {variable_of(site): site for site in sites}
    beside = any(name in owners for term in terms for name in term.dims)
    weighted = any(map(_weights_costs, sites))
    same = weighted and len({(term.ordinal, term.reach) for term in terms}) == 1 and terms[0].reach is None
    if not beside and (same or not weighted):
        everything = list(range(len(terms)))
        common = terms[0].ordinal if same else frozenset()
        return [Contraction(everything, [term.dims for term in terms], list(graph.plates), common=common)]
    found = []
    for members in graph.components():
        own = [terms[i] for i in members]
        common = frozenset.intersection(*(term.ordinal for term in own))
        reach = frozenset().union(*(term.reach or term.ordinal for term in own))
        outer = tuple(dict.fromkeys(name for i in members for name in terms[i].dims if name in owners))
        inside = [owners[name] for name in outer if not ordinal_of(owners[name]) <= common]
        # Whether the terms depend on a value that is enumerated in a run of its own cannot be seen.
        inside += [
            site
            for site in sites
            if "_enum_total" in site["infer"] and ordinal_of(site) <= reach and not ordinal_of(site) <= common
        ]
        if inside:
            raise _too_global(inside[0], common, [graph.sites[i]["name"] for i in members if terms[i].dims])
        dims = [outer + tuple(name for name in terms[i].dims if name not in outer) for i in members]
        found.append(Contraction(members, dims, [*graph.plates, *outer], outer, common, reach))
    return found


def _weights_costs(site: Any) -> bool:
    """Whether a guide site is sampled with a score function, or enumerated run by run."""
    fn = site["fn"]
    return "_enum_total" in site["infer"] or not (fn.has_rsample and has_default_score_parts(fn))


def _too_global(owner: Any, common: frozenset[Hashable], names: list[str]) -> ValueError:
    hint = ""
    if "_enum_total" in owner["infer"]:
        hint = ". If none of these depends on it, mark it 'parallel' instead of 'sequential'"
    return ValueError(
        "Expected model enumeration to be no more global than guide enumeration, but site"
        f" '{owner['name']}' is enumerated in the guide inside plates"
        f" {sorted(map(str, ordinal_of(owner) - common))}, and the model's enumerated sites {names} are not"
        f" all inside{hint}"
    )


def eliminate(graph: FactorGraph, guide_trace: Trace) -> list[Term]:
    """What is left of the factors when the model's variables are summed out, component by component."""
    graph = graph.without_chains()
    parts = contractions(graph, guide_trace)
    if parts[0].reach is None:
        # In one call: what is left has no dims but plates.
        common = parts[0].common
        return [
            Term(common.union(dims), dims, total) for dims, total in graph.totals(keep_common_plates=True)
        ]
    return [_eliminate_beside(part, graph) for part in parts]


def _eliminate_beside(part: Contraction, graph: FactorGraph) -> Term:
    """One component, where each assignment of the guide's variables is a slice of its own."""
    terms = [graph.terms[i] for i in part.members]
    tensors = [align(term.tensor, term.dims, order) for term, order in zip(terms, part.dims, strict=True)]
    [(found, total)] = graph.contract(tensors, part.dims, part.plates, keep_common_plates=True)
    return Term(part.common, found, total, part.reach)
