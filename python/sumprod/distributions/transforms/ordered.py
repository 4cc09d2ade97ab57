"""Increasing vectors from unconstrained ones, and from the simplex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from sumprod.distributions import constraints

__all__ = ["OrderedTransform", "SimplexToOrderedTransform"]


class OrderedTransform(Transform):
    """y_1 = x_1 and y_k = y_(k-1) + exp(x_k)."""

    domain = constraints.real_vector
    codomain = constraints.ordered_vector
    bijective = True
    sign = +1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OrderedTransform)

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat((x[..., :1], x[..., :1] + x[..., 1:].exp().cumsum(-1)), dim=-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat((y[..., :1], y.diff(dim=-1).log()), dim=-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The Jacobian is triangular, with 1, exp(x_2), exp(x_3), ... on the diagonal."""
        return x[..., 1:].sum(-1)


class SimplexToOrderedTransform(Transform):
    """Cut points that give an ordinal variable the class probabilities x.

    y_k = logit(x_1 + ... + x_k) + anchor_point for k < K: with such cut points, a logistic latent variable
    centred on `anchor_point` falls into class k with probability x_k (Betancourt 2019, "Ordinal
    Regression").

    Args:
        anchor_point: a number or a tensor of the batch shape.
    """

    domain = constraints.simplex
    codomain = constraints.ordered_vector

    def __init__(self, anchor_point: Any = None) -> None:
        super().__init__()
        anchor = torch.as_tensor(0.0 if anchor_point is None else anchor_point)
        self.anchor_point = anchor.unsqueeze(-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SimplexToOrderedTransform) and torch.equal(
            self.anchor_point, other.anchor_point
        )

    def _call(self, x: Tensor) -> Tensor:
        # Sums from both ends: 1 - (x_1 + ... + x_k) would lose the digits of a small remainder.
        below = x.cumsum(-1)[..., :-1]
        above = x.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return below.log() - above.log() + self.anchor_point

    def _inverse(self, y: Tensor) -> Tensor:
        below = torch.sigmoid(y - self.anchor_point)
        ends = below.new_zeros((*below.shape[:-1], 1)), below.new_ones((*below.shape[:-1], 1))
        return torch.cat((ends[0], below, ends[1]), dim=-1).diff(dim=-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of y with respect to x_1, ..., x_(K-1): triangular, with 1 / (c_k (1 - c_k)) on the diagonal."""
        below = x.cumsum(-1)[..., :-1]
        above = x.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return -(below.log() + above.log()).sum(-1)

    def forward_shape(self, shape: Any) -> Any:
        """One entry fewer."""
        return torch.Size((*shape[:-1], shape[-1] - 1))

    def inverse_shape(self, shape: Any) -> Any:
        """One entry more."""
        return torch.Size((*shape[:-1], shape[-1] + 1))
