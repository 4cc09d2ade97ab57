"""Correlation matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions import constraints
from sumprod.distributions._lkj_cholesky import LKJCholesky
from sumprod.distributions.torch import TransformedDistribution
from sumprod.distributions.transforms import CorrMatrixCholeskyTransform

__all__ = ["LKJ", "LKJCorrCholesky"]


class LKJ(TransformedDistribution):
    """Correlation matrices with density proportional to det(R)^(concentration - 1).

    Lewandowski, Kurowicka and Joe 2009, "Generating random correlation matrices based on vines and extended
    onion method". With concentration 1 all correlation matrices are equally likely; the larger it is, the
    closer they are to the identity.

    Args:
        dim: number of rows, at least 2.
        concentration: positive, [*B].
        validate_args: whether to check parameters and values.

    A value is [*B, dim, dim]. `LKJCholesky` is the same law of the lower Cholesky factor, and cheaper where
    the factor is what one needs.

    Raises:
        ValueError: `dim` is below 2; a parameter or a value is outside its constraint.

    Example:
        >>> import torch
        >>> from sumprod.distributions import LKJ
        >>> LKJ(2, torch.tensor(1.0)).log_prob(torch.eye(2)).exp().item()  # a correlation, uniform on (-1, 1)
        0.5
    """

    arg_constraints: dict[str, Any] = {"concentration": constraints.positive}  # noqa: RUF012
    support: Any = constraints.corr_matrix

    def __init__(
        self, dim: int, concentration: Tensor | float = 1.0, validate_args: bool | None = None
    ) -> None:
        base = LKJCholesky(dim, concentration, validate_args=validate_args)
        self.dim, self.concentration = base.dim, base.concentration
        super().__init__(base, CorrMatrixCholeskyTransform().inv, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LKJ:
        """The same parameters under a larger batch shape."""
        new: LKJ = self._get_checked_instance(LKJ, _instance)  # type: ignore[no-untyped-call]
        super().expand(torch.Size(batch_shape), _instance=new)
        new.dim = self.dim
        new.concentration = self.concentration.expand(torch.Size(batch_shape))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """(concentration - 1) log det value, minus the log of its integral over all correlation matrices."""
        if self._validate_args:
            self._validate_sample(value)
        half_log_det = torch.linalg.cholesky(value).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        eta, dim = self.concentration, self.dim
        left = torch.arange(1, dim, dtype=eta.dtype, device=eta.device)
        rows = torch.lgamma(eta.unsqueeze(-1) + (dim - 1 - left) / 2).sum(-1)
        constant = rows - (dim - 1) * torch.lgamma(eta + (dim - 1) / 2)
        constant = constant + 0.25 * dim * (dim - 1) * math.log(math.pi)
        log_prob: Tensor = 2 * (eta - 1) * half_log_det - constant
        return log_prob

    @property
    def mean(self) -> Tensor:
        """The identity matrix, whatever the concentration."""
        eye = torch.eye(self.dim, dtype=self.concentration.dtype, device=self.concentration.device)
        return eye.expand(self.batch_shape + self.event_shape)


class LKJCorrCholesky(LKJCholesky):
    """`LKJCholesky` under an older name and with other names of its arguments.

    Args:
        d: number of rows, at least 2.
        eta: concentration, positive.
        validate_args: whether to check parameters and values.
    """

    def __init__(self, d: int, eta: Tensor | float, validate_args: bool | None = None) -> None:
        super().__init__(d, concentration=eta, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LKJCorrCholesky:
        """The same parameters under a larger batch shape."""
        new: LKJCorrCholesky = self._get_checked_instance(LKJCorrCholesky, _instance)  # type: ignore[no-untyped-call]
        super().expand(torch.Size(batch_shape), _instance=new)
        return new
