"""Independent draws for a batch shape that is larger than that of the distribution that draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["expand_draws", "stretched_dims"]


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
    sample_shape: tuple[int, ...],
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
    batch_shape = tuple(batch_shape)
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
