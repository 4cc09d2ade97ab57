"""What a masked distribution does with the places where its mask is False."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions._feasible import feasible_point
from sumprod.distributions.util import broadcast_shape

__all__ = ["filled", "zero_log_prob"]

# What `feasible_point` would find, at once, for the supports of most data.
_HARMLESS = {
    constraints.real: 0.0,
    constraints.positive: 1.0,
    constraints.nonnegative: 1.0,
    constraints.unit_interval: 0.5,
    constraints.boolean: 0.0,
    constraints.nonnegative_integer: 0.0,
}


def filled(
    value: Any, mask: Tensor, support: Any, event_shape: torch.Size, present: Tensor | None = None
) -> Any:
    """`value` with something harmless where `mask` is False.

    So a missing value that is written as NaN, or as a number outside the support, makes neither an error
    nor a NaN in a gradient. `value` is returned as it is when no rule gives a point of the support, and
    when it does not have the batch dims of the mask (then it is no data of this batch, but for example an
    enumerated value, and filling would make it larger).

    Args:
        value: what to fill.
        mask: of the batch shape.
        support: of the distribution.
        event_shape: of one value.
        present: entries of `value` to keep even where `mask` is False.
    """
    if not isinstance(value, Tensor):
        return value
    mask = mask.reshape(mask.shape + (1,) * len(event_shape))
    if mask.dim() > value.dim():
        return value
    if any(m != 1 and m != v for m, v in zip(mask.shape[::-1], value.shape[::-1], strict=False)):
        return value
    keep = mask if present is None else mask | present
    number = _HARMLESS.get(support) if value.is_floating_point() else None
    if number is not None:
        return torch.where(keep, value, number)
    harmless = feasible_point(support, value, event_shape)
    return value if harmless is None else torch.where(keep, value, harmless.to(value.dtype))


def zero_log_prob(value: Tensor, batch_shape: torch.Size, event_shape: torch.Size) -> Tensor:
    """Zeros of the shape that a log-density at `value` has."""
    shape = broadcast_shape(batch_shape, value.shape[: value.dim() - len(event_shape)])
    dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    return torch.zeros((), dtype=dtype, device=value.device).expand(shape)
