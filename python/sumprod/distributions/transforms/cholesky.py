"""Triangular factors: of covariance and correlation matrices, and from unconstrained matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import CorrCholeskyTransform, Transform
from torch.nn.functional import softplus

from sumprod.distributions import constraints

__all__ = [
    "CholeskyTransform",
    "CorrLCholeskyTransform",
    "CorrMatrixCholeskyTransform",
    "LowerCholeskyAffine",
    "SoftplusLowerCholeskyTransform",
    "UnitLowerCholeskyTransform",
]


class CholeskyTransform(Transform):
    """A positive definite matrix to its Cholesky factor; densities are over the lower triangle of each."""

    domain = constraints.positive_definite
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def _call(self, x: Tensor) -> Tensor:
        return torch.linalg.cholesky(x)  # type: ignore[no-any-return]

    def _inverse(self, y: Tensor) -> Tensor:
        return y @ y.mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """-(n log 2 + sum_i (n - i + 1) log y_ii), with i from 1 (Muirhead 1982, theorem 2.1.9)."""
        n = x.shape[-1]
        powers = torch.arange(n, 0, -1, dtype=y.dtype, device=y.device)
        return -(n * math.log(2) + (y.diagonal(dim1=-2, dim2=-1).log() * powers).sum(-1))


class CorrMatrixCholeskyTransform(CholeskyTransform):
    """A correlation matrix to its Cholesky factor; densities are over the strict lower triangles."""

    domain = constraints.corr_matrix
    codomain = constraints.corr_cholesky

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """-sum_i (n - i) log y_ii: the diagonal of the factor follows from the rest."""
        n = x.shape[-1]
        powers = torch.arange(n - 1, -1, -1, dtype=y.dtype, device=y.device)
        return -(y.diagonal(dim1=-2, dim2=-1).log() * powers).sum(-1)


CorrLCholeskyTransform = CorrCholeskyTransform  # Pyro's older name for torch's class


class LowerCholeskyAffine(Transform):
    """y = loc + scale_tril @ x.

    Args:
        loc: shape batch_shape + (n,).
        scale_tril: lower triangular with positive diagonal, shape batch_shape + (n, n).
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale_tril: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.loc = loc
        self.scale_tril = scale_tril
        if loc.shape[-1:] != scale_tril.shape[-1:] or scale_tril.shape[-2:-1] != scale_tril.shape[-1:]:
            raise ValueError(
                "LowerCholeskyAffine expected loc of shape (..., n) and scale_tril of shape (..., n, n), got "
                f"{tuple(loc.shape)} and {tuple(scale_tril.shape)}"
            )

    def with_cache(self, cache_size: int = 1) -> LowerCholeskyAffine:
        """The same transform with another cache."""
        return self if self._cache_size == cache_size else type(self)(self.loc, self.scale_tril, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + (self.scale_tril @ x.unsqueeze(-1)).squeeze(-1)

    def _inverse(self, y: Tensor) -> Any:
        deviation = (y - self.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.scale_tril, deviation, upper=False).squeeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Any:
        """Sum of the logarithms of the diagonal."""
        total = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return total.expand(torch.broadcast_shapes(x.shape[:-1], total.shape))


class _FromMatrix(Transform):
    """A real matrix to a triangular one; what lies above the diagonal is ignored."""

    domain = constraints.independent(constraints.real, 2)
    bijective = False

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)


class SoftplusLowerCholeskyTransform(_FromMatrix):
    """The lower triangle of a real matrix, with softplus of its diagonal."""

    codomain = constraints.softplus_lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + softplus(x.diagonal(dim1=-2, dim2=-1)).diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        diagonal = y.diagonal(dim1=-2, dim2=-1)
        # log(exp(d) - 1) without overflow.
        return y.tril(-1) + (diagonal + (-torch.expm1(-diagonal)).log()).diag_embed()


class UnitLowerCholeskyTransform(_FromMatrix):
    """The strict lower triangle of a real matrix, with ones on the diagonal."""

    codomain = constraints.unit_lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    def _inverse(self, y: Any) -> Any:
        return y
