"""Log-densities of many sites around enumerated variables, in one call for each kind of site.

Along a chain every step has the same sites. Sites of one family with equal shapes are stacked along a new
leftmost dim, their parameters as they were before expansion to the plates, and evaluated by the family's
own methods. Of a site that depends on an enumerated variable, plates inside which no variable lives are
summed over at once: factors along such a plate are multiplied before anything else anyway. Where parameters
and data share no dim that is left, the sum is a matrix product (see `_sufficient`) if the family has one.

A site takes part when it is enumerated over a Categorical, or when it is observed, of a family that can
be stacked (perhaps under `to_event`), perhaps inside `handlers.mask`. Where the stacked call raises, its
sites are evaluated one by one, so that the error names the site.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod.distributions import Categorical, Independent, Multinomial
from sumprod.distributions._checks import eager, satisfied
from sumprod.distributions._masking import filled
from sumprod.distributions._support import is_whole_support
from sumprod.distributions.util import broadcast_shape, scale_and_mask
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._checks import check_density_shape
from sumprod.infer._enum_chain import chain_of
from sumprod.infer._enum_sites import Term, site_density, site_term, unmasked
from sumprod.infer._repeated import all_alike
from sumprod.infer._stacked_family import before_expansion, own_dims, parameters_of, with_parameters
from sumprod.infer._sufficient import gains_without_sum, has_statistics, pays, summed_log_prob
from sumprod.settings import state

__all__ = ["site_terms"]

_LARGE = 1 << 12  # entries of a density; parameters before expansion then save work even for one site
_SHORT = 32  # a loop over fewer entries costs more to start than to run
_MOST_ENTRIES = 1 << 18  # of one stacked tensor; above that, memory costs more than calls


class _Member(NamedTuple):
    """A site that can be evaluated together with others of its kind."""

    site: Any
    fn: Any  # under `to_event`
    event: int  # dims of `to_event`
    names: tuple[str, ...]  # of the parameters
    parameters: list[Tensor]  # before expansion
    mask: Tensor | None


class _Kind(NamedTuple):
    """Equal for sites that can be evaluated together. It says all that the layout depends on."""

    plates: tuple[tuple[int | None, int, bool], ...]  # dim, size and whether a variable lives inside
    family: type
    names: tuple[str, ...]
    event: int
    batch_shape: torch.Size
    event_shape: torch.Size
    state: Hashable  # of the distribution, besides parameters
    parameters: tuple[torch.Size, ...]
    value: torch.Size
    mask: torch.Size | None
    dtypes: tuple[torch.dtype, ...]
    enumerate_dim: int | None
    numbered: tuple[tuple[int, bool], ...]  # dims of variables, and whether those are to be summed out


class _Layout(NamedTuple):
    """What becomes of the dims of a density. Dims are batch dims of the family, those of `to_event` too."""

    rank: int
    summed: tuple[int, ...]
    repeats: int  # the product of the sizes of plates to be summed over along which nothing varies
    varying: tuple[int, ...]  # dims of the term along which the density varies
    constant: tuple[int, ...]  # other dims of the term
    product: bool  # data and parameters share no dim of the term
    shape: tuple[int, ...]  # of the site's density
    entries: int  # of the largest tensor in the computation
    product_entries: int  # the same, of a computation by matrix products


def site_terms(
    trace: Trace, sites: Sequence[Any], variables: Mapping[int, Any], max_plate_nesting: float
) -> list[Term]:
    """The log-densities of sites, those that depend on `variables` in groups where possible.

    Args:
        trace: where the sites are.
        sites: sample sites.
        variables: the enumerated variables to be summed out; id -> site.
        max_plate_nesting: the largest -dim of any plate.

    Returns:
        Per site as `site_term(site, site_density(trace, site, max_plate_nesting), variables)`, but terms that
        depend on `variables` are summed over plates in which no variable lives, and sites whose densities are
        known to be equal have one tensor.

    Raises:
        ValueError: a value does not suit its distribution; a density's shape does not suit the plates.
    """
    grouped = _grouped_terms(sites, variables, max_plate_nesting) if variables and eager() else {}
    return [
        grouped.get(site["name"]) or site_term(site, site_density(trace, site, max_plate_nesting), variables)
        for site in sites
    ]


def _grouped_terms(
    sites: Iterable[Any], variables: Mapping[int, Any], max_plate_nesting: float
) -> dict[str, Term]:
    """Name -> term, of the sites that can be evaluated in groups."""
    occupied = {frame.name for owner in variables.values() for frame in owner["cond_indep_stack"]}
    groups: dict[_Kind, list[_Member]] = {}
    kinds_of_plates: dict[tuple[int, ...], tuple[Any, ...]] = {}
    for site in sites:
        member = _member(site)
        if member is None:
            continue
        # One frame object around many sites is hashed once.
        frames = site["cond_indep_stack"]
        identity = tuple([id(frame) for frame in frames])
        plates = kinds_of_plates.get(identity)
        if plates is None:
            plates = tuple([(frame.dim, frame.size, frame.name in occupied) for frame in frames])
            kinds_of_plates[identity] = plates
        groups.setdefault(_kind(member, variables, plates), []).append(member)
    terms: dict[str, Term] = {}
    for kind, members in groups.items():
        layout = _layout(kind)
        # A chain's states are worth it, for their shared transitions.
        alone = len(members) == 1 and chain_of(members[0].site) is None
        if layout is None or (alone and not layout.summed and prod(layout.shape) < _LARGE):
            continue
        if state.validate_infer:
            check_density_shape(members[0].site, layout.shape, max_plate_nesting)
        if layout.product and not pays(kind.family, len(members) * layout.entries):
            layout = layout._replace(product=False)
        terms.update(_in_pieces(members, layout))
    return terms


def _member(site: Any) -> _Member | None:
    """A site as a member of a group, if it can be one."""
    fn, value, mask = site["fn"], site["value"], site["mask"]
    if site["args"] or site["kwargs"] or not isinstance(value, Tensor):
        return None
    event, mask = 0, None if mask is True else mask
    if site["infer"].get("_enumerate_dim") is not None:
        fn, mask = unmasked(fn), None
        if type(fn) is not Categorical or not is_whole_support(value, fn._num_events):
            return None
    elif not site["is_observed"] or not (mask is None or isinstance(mask, Tensor)):
        return None
    elif type(fn) is Independent:
        event, fn = fn.reinterpreted_batch_ndims, fn.base_dist
    found = parameters_of(fn)
    if found is None:
        return None
    names, parameters = found[0], [before_expansion(parameter) for parameter in found[1]]
    for parameter in parameters:
        if parameter.device != value.device:
            return None
    return _Member(site, fn, event, names, parameters, mask)


def _kind(member: _Member, variables: Container[Any], plates: tuple[Any, ...]) -> _Kind:
    site, fn, event, names, parameters, mask = member
    infer, value = site["infer"], site["value"]
    return _Kind(
        plates,
        type(fn),
        names,
        event,
        fn._batch_shape,
        fn._event_shape,
        (fn._validate_args, fn.__dict__.get("_exact_zeros"), type(fn) is Multinomial and fn.total_count),
        tuple([parameter.shape for parameter in parameters]),
        value.shape,
        None if mask is None else mask.shape,
        (value.dtype, *[parameter.dtype for parameter in parameters]),
        infer.get("_enumerate_dim"),
        tuple([(dim, number in variables) for dim, number in infer.get("_dim_to_id", {}).items()]),
    )


@functools.lru_cache(maxsize=1024)
def _layout(kind: _Kind) -> _Layout | None:
    """The layout of a site's density; None when it is to be evaluated by itself."""
    family, event = kind.family, kind.event
    own, events = own_dims(family), len(kind.event_shape)
    data_dims = len(kind.value) - events
    if kind.value[data_dims:] != kind.event_shape:
        return None
    mask_shape = () if kind.mask is None else (*kind.mask, *[1] * event)
    try:
        of_parameters = broadcast_shape(*[shape[: len(shape) - own] for shape in kind.parameters])
        of_data = broadcast_shape(kind.value[:data_dims], mask_shape)
        shape = broadcast_shape(of_parameters, of_data, kind.batch_shape)
    except ValueError:
        return None  # evaluated by itself, the site raises the error that names it
    rank = len(shape)
    of_parameters = (1,) * (rank - len(of_parameters)) + of_parameters
    of_data = (1,) * (rank - len(of_data)) + of_data
    plates = {dim - event: (size, occupied) for dim, size, occupied in kind.plates if dim is not None}
    depends_on = dict(kind.numbered)
    summed, varying, constant, repeats = list(range(-event, 0)), [], [], 1
    depends, product = False, kind.enumerate_dim is None and has_statistics(family)
    for dim in range(-rank, -event):
        varies = of_parameters[dim] > 1 or of_data[dim] > 1
        if dim in plates:
            if not plates[dim][1]:
                summed.append(dim)
                continue
        elif varies:
            if not depends_on.get(dim + event):
                return None
            depends = True
        if varies:
            varying.append(dim)
            product = product and (of_parameters[dim] == 1 or of_data[dim] == 1)
        elif shape[dim] > 1:
            constant.append(dim)
    if not depends or any(dim < -rank and size > 1 for dim, (size, _) in plates.items()):
        return None
    for dim in summed:
        if of_parameters[dim] == of_data[dim] == 1:
            repeats *= shape[dim]
    product = product and (bool(summed) or gains_without_sum(family))
    width = prod(kind.event_shape)
    term = [size for dim, size in enumerate(shape, -rank) if dim not in summed]
    return _Layout(
        rank=rank,
        summed=tuple(summed),
        repeats=repeats,
        varying=tuple(varying),
        constant=tuple(constant),
        product=product,
        shape=shape[: rank - event],
        entries=prod(shape) * width,
        product_entries=max(prod(of_parameters) * width, prod(of_data) * width, prod(term)),
    )


def _in_pieces(members: Sequence[_Member], layout: _Layout) -> Iterable[tuple[str, Term]]:
    """Terms of a group, some members at a time where all together would take too much memory."""
    count = max(1, _MOST_ENTRIES // (layout.product_entries if layout.product else layout.entries))
    for i in range(0, len(members), count):
        yield from _terms(members[i : i + count], layout)


def _terms(members: Sequence[_Member], layout: _Layout) -> Iterable[tuple[str, Term]]:
    data = None
    if members[0].site["infer"].get("_enumerate_dim") is None:
        data = _stacked_data(members, layout)
    fn = _stacked_family(members, layout)
    if layout.product:
        assert data is not None
        density = _summed_density(fn, data, layout)
        if density is None:
            yield from _in_pieces(members, layout._replace(product=False))
            return
    else:
        density = _density(fn, data, members[0].site["value"], layout)
        if density is None:
            return
    if layout.repeats > 1:
        density = density * layout.repeats
    # Names go with dims in this order: along which nothing varies, then the others.
    sizes = [density.shape[dim] for dim in layout.varying]
    shape = [1] * len(layout.constant) + sizes
    if len(density) > 1:
        rows = density.reshape([len(density), *shape]).unbind()
    else:
        rows = (density.reshape(shape),) * len(members)
    event = members[0].event
    positions = [dim + event for dim in (*layout.constant, *layout.varying)]
    gone = {dim + event for dim in layout.summed}
    frames: Any = None
    for member, row in zip(members, rows, strict=True):
        site = member.site
        if frames is None or site["cond_indep_stack"] != frames:
            frames = site["cond_indep_stack"]
            plates = {frame.dim: frame.name for frame in frames if frame.dim is not None}
            ordinal = frozenset([name for dim, name in plates.items() if dim not in gone])
            reach = frozenset(plates.values()) if len(ordinal) < len(plates) else None
        variables = site["infer"]["_dim_to_id"]
        names = tuple([plates[dim] if dim in plates else variables[dim] for dim in positions])
        yield site["name"], Term(ordinal, names, row, reach)


def _stacked_family(members: Sequence[_Member], layout: _Layout) -> Any:
    """Distributions as one, with parameters (sites or 1, ...) of all batch dims."""
    first = members[0].fn
    rank = layout.rank + own_dims(type(first))
    parameters = []
    for of_sites in zip(*(member.parameters for member in members), strict=True):
        distinct = of_sites[:1] if all_alike(of_sites) else of_sites
        parameters.append(_stacked(distinct, rank))
    return with_parameters(first, members[0].names, parameters)


def _stacked_data(members: Sequence[_Member], layout: _Layout) -> tuple[Tensor, Tensor | None]:
    """Values and masks of sites along a new leftmost dim. Where all are the same, dim 0 has size 1."""
    first = members[0]
    value = _stacked(
        tuple([member.site["value"] for member in members]), layout.rank + len(first.fn._event_shape)
    )
    masks = tuple([member.mask for member in members if member.mask is not None])
    if not masks:
        return value, None
    mask = _stacked(masks, layout.rank - first.event)
    return value, mask.reshape(mask.shape + (1,) * first.event)


def _summed_density(fn: Any, data: tuple[Tensor, Tensor | None], layout: _Layout) -> Tensor | None:
    """[sites, *batch dims], with size 1 along summed dims; None where matrix products will not do."""
    value, mask = data
    summed = [dim + layout.rank + 1 for dim in layout.summed]
    within = mask if mask is not None and any(mask.shape[dim] > 1 for dim in summed) else None
    log_prob = summed_log_prob(fn, value, within, summed) if mask is None or fn._validate_args else None
    if log_prob is None and mask is not None:
        value = filled(value, mask, fn.support, fn._event_shape)
        log_prob = summed_log_prob(fn, value, within, summed)
    if log_prob is not None and mask is not None and within is None:
        return torch.where(mask, log_prob, 0.0)
    return log_prob


def _density(
    fn: Any, data: tuple[Tensor, Tensor | None] | None, support: Tensor, layout: _Layout
) -> Tensor | None:
    """[sites, *batch dims], with size 1 along summed dims; None when a value does not suit its family.

    Where all sites have equal densities dim 0 has size 1. Without data it is that of a whole support.
    """
    log_prob: Tensor
    if data is None:
        dim = -support.dim()
        log_prob = fn.logits.transpose(-1, dim - 1).squeeze(-1)
        return log_prob
    value, mask = data
    if mask is not None and not (fn._validate_args and satisfied(fn.support, value)):
        value = filled(value, mask, fn.support, fn._event_shape)
    if value.numel() >= _LARGE and not fn._event_shape:
        value = _summed_outermost(value, layout.summed)
    try:
        log_prob = scale_and_mask(fn.log_prob(value), mask=mask)
    except ValueError:
        return None
    return log_prob.sum(layout.summed, keepdim=True) if layout.summed else log_prob


def _summed_outermost(value: Tensor, summed: tuple[int, ...]) -> Tensor:
    """The same entries, in memory with a few summed dims before others.

    Operators loop over the last dim in memory: where the data are short vectors, loops are short too.
    """
    if not 1 < prod([value.shape[dim] for dim in summed]) <= _SHORT:
        return value
    first = tuple(range(len(summed)))
    return value.movedim(summed, first).contiguous().movedim(first, summed)


def _stacked(tensors: tuple[Tensor, ...], rank: int) -> Tensor:
    """Tensors of equal shape along a new leftmost dim, with `rank` dims to its right."""
    shape = (1,) * (rank - tensors[0].dim()) + tensors[0].shape
    if len(tensors) == 1:
        return tensors[0].reshape(1, *shape)
    stacked = torch.stack(tensors)
    return stacked if stacked.dim() == rank + 1 else stacked.reshape(len(tensors), *shape)
