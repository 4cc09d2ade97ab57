"""A point of a distribution's support, for places whose value must not matter.

Padding and the unused half of a mixture are computed and then thrown away. Thrown away is not enough:
a NaN or an infinite slope there becomes NaN in the gradient (0 * inf), and validation refuses it.
So such places are first filled with a harmless value.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

__all__ = ["feasible_point"]


def feasible_point(support: constraints.Constraint, like: Tensor, event_shape: torch.Size) -> Tensor | None:
    """A value inside `support`, away from its edges where it is continuous.

    Args:
        support: the support of a distribution; its bounds may be tensors.
        like: gives dtype and device.
        event_shape: shape of one value.

    Returns:
        A tensor whose shape ends in `event_shape` and broadcasts with the bounds of the support; None
        for a constraint that no rule covers.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    if support is constraints.one_hot:
        first = torch.zeros(event_shape, dtype=like.dtype, device=like.device)
        first[..., 0] = 1
        return first
    bound = _lowest(support)
    if bound is not None:
        lowest = torch.as_tensor(bound, device=like.device).detach().to(like.dtype)
        return lowest.expand(torch.broadcast_shapes(lowest.shape, event_shape))
    try:
        transform = transform_to(support)
    except NotImplementedError:
        return None
    with torch.no_grad():
        shape = torch.Size(transform.inverse_shape(event_shape))
        point: Tensor = transform(torch.zeros(shape, dtype=dtype, device=like.device))
    return point


def _lowest(support: constraints.Constraint) -> Tensor | float | None:
    """The lowest value of an integer support; None for other supports."""
    if support is constraints.boolean or isinstance(support, constraints.multinomial):
        return 0
    if isinstance(support, constraints.integer_interval | type(constraints.nonnegative_integer)):
        bound: Tensor | float = support.lower_bound
        return bound
    return None
