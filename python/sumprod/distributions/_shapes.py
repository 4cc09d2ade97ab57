"""Shapes from shapes of arguments, and draws for a batch shape larger than that of what draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions.util import broadcast_shape

__all__ = ["expand_draws", "shapes_of_arguments", "stretched_dims"]


def stretched_dims(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """The dims of size 1 in `old` that are larger in `new`, as negative dims from left to right.

    Raises:
        ValueError: `old` does not expand to `new`.
    """
    old, new = tuple(old), tuple(new)
    stretched = []
    for dim in range(-len(old), 0):
        size = new[dim] if -dim <= len(new) else None
        if size is None or (size != old[dim] and old[dim] != 1):
            raise ValueError(f"shape mismatch: a batch of shape {old} cannot be expanded to {new}")
        if size != old[dim]:
            stretched.append(dim)
    return tuple(stretched)


def expand_draws(
    draw: Callable[[tuple[int, ...]], Any],
    sample_shape: Sequence[int],
    base: Any,
    batch_shape: Sequence[int],
    stretched: tuple[int, ...],
) -> Tensor:
    """Draws of shape sample_shape + batch_shape + event_shape, all independent.

    New dims are drawn as sample dims; those that belong inside the old batch are then moved there.

    Args:
        draw: `base.sample` or `base.rsample`.
        sample_shape: further sample dims.
        base: the distribution.
        batch_shape: the larger shape.
        stretched: what `stretched_dims` says.
    """
    sample_shape, batch_shape = tuple(sample_shape), tuple(batch_shape)
    added = batch_shape[: len(batch_shape) - len(base.batch_shape)]
    outer = sample_shape + added
    draws: Tensor = draw(outer + tuple(batch_shape[dim] for dim in stretched))
    if stretched:
        event_dim = len(base.event_shape)
        places = [draws.dim() + dim - event_dim for dim in stretched]
        sources = range(len(outer), len(outer) + len(stretched))
        # Each old dim of size 1 changes place with the dim drawn for it.
        order = list(range(draws.dim()))
        for source, place in zip(sources, places, strict=True):
            order[source], order[place] = order[place], order[source]
        draws = draws.permute(order)
    return draws.reshape(sample_shape + batch_shape + tuple(base.event_shape))


def shapes_of_arguments(
    family: Any, arg_shapes: Mapping[str, Sequence[int]]
) -> tuple[torch.Size, torch.Size]:
    """`(batch_shape, event_shape)` of a family for arguments of given shapes, by its constraints.

    Raises:
        NotImplementedError: the constraints do not tell.
    """
    known = getattr(family, "arg_constraints", None)
    known = known if isinstance(known, dict) else {}
    event_dim = family.support.event_dim
    event_shape: Any = () if event_dim == 0 else None
    batch_shapes = []
    for name, shape in arg_shapes.items():
        own = known[name].event_dim if name in known else 0
        batch_shapes.append(tuple(shape)[: len(shape) - own])
        if event_shape is None and own >= event_dim:
            event_shape = tuple(shape)[len(shape) - event_dim :]
    if event_shape is None:
        raise NotImplementedError(
            f"{family.__name__}.infer_shapes cannot tell the event shape from {sorted(arg_shapes)}; "
            "construct the distribution and look at its batch_shape and event_shape"
        )
    return torch.Size(broadcast_shape(*batch_shapes)), torch.Size(event_shape)
