"""Log-densities of enumerated sites with named dims.

A name is a plate's name (a string) or an enumerated variable's id (an int). Dims of size 1 have no name:
a density does not depend on what has size 1.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod.distributions import ExpandedDistribution, MaskedDistribution
from sumprod.distributions.util import scale_and_mask
from sumprod.errors import describe_plates
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._checks import check_density_shape
from sumprod.settings import state

__all__ = [
    "Term",
    "align",
    "named_dims",
    "ordinal_of",
    "site_density",
    "site_term",
    "support_size",
    "unmasked",
    "variable_of",
]

Names = tuple[Hashable, ...]


class Term(NamedTuple):
    """A tensor with named dims that lives in some plates."""

    ordinal: frozenset[Hashable]  # names of the plates, also of those of size 1
    dims: Names
    tensor: Tensor
    reach: frozenset[Hashable] | None = None  # plates of all that the tensor was made of, when more


def ordinal_of(site: Any) -> frozenset[Hashable]:
    """Names of the vectorised plates around a site."""
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.dim is not None)


def support_size(site: Any) -> int | None:
    """How many values a site enumerates; None: it does not."""
    dim = site["infer"].get("_enumerate_dim")
    return None if dim is None else site["value"].shape[dim - len(site["fn"]._event_shape)]


def variable_of(site: Any) -> int | None:
    """The id of the variable that a site enumerates; None when it does not, or has but one value."""
    infer, size = site["infer"], support_size(site)
    if size is None or size == 1:
        return None
    number: int = infer["_dim_to_id"][infer["_enumerate_dim"]]
    return number


def unmasked(fn: Any) -> Any:
    """A distribution without masks."""
    if not isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return fn
    base = unmasked(fn.base_dist)
    if base is fn.base_dist:
        return base if isinstance(fn, MaskedDistribution) else fn
    return base.expand(fn.batch_shape)


def site_density(trace: Trace, site: Any, max_plate_nesting: float) -> Any:
    """The log-density of a site, masked but not scaled; kept in `site["unscaled_log_prob"]`.

    An enumerated site is not masked: it stays a probability distribution, so that a masked part of a
    program, its variables included, contributes nothing.

    Raises:
        ValueError: the value does not suit the distribution, or the shape does not suit the plates.
    """
    known = site.get("unscaled_log_prob")
    if known is not None:
        return known
    if site["infer"].get("_enumerate_dim") is not None:
        masked = site
        if site["mask"] is not None or isinstance(site["fn"], MaskedDistribution):
            masked = {**site, "mask": None, "fn": unmasked(site["fn"])}
        log_prob = trace._site_log_prob(masked, "log_prob")
    else:
        log_prob = trace._site_log_prob(site, "log_prob")
        if site["mask"] is not None:
            log_prob = scale_and_mask(log_prob, mask=site["mask"])
    if state.validate_infer:
        check_density_shape(site, log_prob.shape, max_plate_nesting)
    site["unscaled_log_prob"] = log_prob
    return log_prob


def named_dims(site: Any) -> tuple[dict[int, Hashable], list[Any]]:
    """Names of the batch dims that a site's density may have, and the frames of its vectorised plates."""
    names: dict[int, Hashable] = dict(site["infer"].get("_dim_to_id", {}))
    frames = []
    for frame in site["cond_indep_stack"]:
        if frame.dim is not None:
            frames.append(frame)
            names[frame.dim] = frame.name
    return names, frames


def site_term(site: Any, log_prob: Tensor, variables: Container[Any] = ()) -> Term:
    """A batch-shaped tensor of a site with named dims, expanded to all plates around the site.

    A term that depends on any of `variables` is not expanded: along plates where it is constant it has
    size 1.

    Raises:
        ValueError: a dim belongs to no plate and no variable that the site may depend on.
    """
    names, frames = named_dims(site)
    deepest = max([-frame.dim for frame in frames], default=0)
    if log_prob.dim() < deepest:
        log_prob = log_prob.reshape((1,) * (deepest - log_prob.dim()) + log_prob.shape)
    rank = log_prob.dim()
    kept, dims = [], []
    for i, size in enumerate(log_prob.shape):
        if size != 1:
            name = names.get(i - rank)
            if name is None:
                raise _unnamed(site, log_prob.shape, i - rank, names)
            kept.append(i - rank)
            dims.append(name)
    lacking = [frame for frame in frames if frame.size > 1 and log_prob.shape[frame.dim] == 1]
    if lacking:
        depends = any(name in variables for name in dims)
        for frame in lacking:
            kept.append(frame.dim)
            if not depends:
                log_prob = log_prob.expand(
                    [frame.size if i - rank == frame.dim else size for i, size in enumerate(log_prob.shape)]
                )
        kept.sort()
        dims = [names[dim] for dim in kept]
    tensor = log_prob
    if len(kept) < rank:
        tensor = log_prob.reshape([log_prob.shape[dim] for dim in kept])
    return Term(frozenset(frame.name for frame in frames), tuple(dims), tensor)


def _unnamed(site: Any, shape: torch.Size, dim: int, names: dict[int, Hashable]) -> ValueError:
    error = ValueError(
        f"Error while packing tensors at site '{site['name']}'{describe_plates(site['cond_indep_stack'])}:\n"
        "Invalid tensor shape.\n"
        f"  Allowed dims: {', '.join(map(str, sorted(names))) or 'none'}\n"
        f"  Actual shape: {tuple(shape)}, which has size {shape[dim]} at dim {dim}\n"
        "  The site depends on an enumerated variable out of its sight, or on a batch dim of no plate.\n"
        "  Try adding a plate for that dim, or increasing pyro.markov history size"
    )
    error.site = site["name"]  # type: ignore[attr-defined]
    error.plates = site["cond_indep_stack"]  # type: ignore[attr-defined]
    return error


def align(tensor: Tensor, dims: Names, order: Names) -> Tensor:
    """A view with the dims in the given order; dims that the tensor lacks have size 1."""
    if dims == order:
        return tensor
    positions = [dims.index(name) for name in order if name in dims]
    if positions != sorted(positions):  # a view that changes nothing still costs two operators
        tensor = tensor.permute(positions)
    if len(positions) == len(order):
        return tensor
    sizes = iter(tensor.shape)
    return tensor.reshape([next(sizes) if name in dims else 1 for name in order])
