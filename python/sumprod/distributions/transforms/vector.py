"""Permutations and normalisation of one dim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from sumprod.distributions import constraints

__all__ = ["Normalize", "Permute", "permute"]


class Permute(Transform):
    """Reorders dim `dim`: y_i = x_(permutation_i).

    Args:
        permutation: int64 tensor, an arrangement of 0, ..., n-1.
        dim: negative, the dim to reorder.
        cache_size: of torch's transforms.

    Raises:
        ValueError: `dim` is not negative, or `permutation` is not a permutation.
    """

    bijective = True

    def __init__(self, permutation: Tensor, *, dim: int = -1, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        if dim >= 0:
            raise ValueError(f"'dim' keyword argument must be negative, got {dim}")
        if not torch.equal(permutation.sort().values, torch.arange(len(permutation)).to(permutation)):
            raise ValueError(f"Permute expected an arrangement of 0, ..., n-1, got {permutation}")
        self.permutation = permutation
        self.inv_permutation = permutation.argsort()
        self.dim = dim

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        """Real numbers; `-dim` dims form one value."""
        return constraints.independent(constraints.real, -self.dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        """The same."""
        return constraints.independent(constraints.real, -self.dim)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Permute)
            and self.dim == other.dim
            and torch.equal(self.permutation, other.permutation)
        )

    def with_cache(self, cache_size: int = 1) -> Permute:
        """The same transform with another cache."""
        if self._cache_size == cache_size:
            return self
        return Permute(self.permutation, dim=self.dim, cache_size=cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.permutation)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.index_select(self.dim, self.inv_permutation)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return x.new_zeros(x.shape[: x.dim() + self.dim])


def permute(input_dim: int, permutation: Tensor | None = None, dim: int = -1) -> Permute:
    """A `Permute` of a dim of size `input_dim`: a random one unless `permutation` is given."""
    return Permute(torch.randperm(input_dim) if permutation is None else permutation, dim=dim)


class Normalize(Transform):
    """A vector divided by its p-norm; not injective.

    Args:
        p: order of the norm, not negative.
        cache_size: of torch's transforms.
    """

    domain = constraints.real_vector
    codomain = constraints.sphere
    bijective = False

    def __init__(self, p: float = 2, cache_size: int = 0) -> None:
        if not p >= 0:
            raise ValueError(f"Normalize expected p >= 0, got {p}")
        self.p = p
        super().__init__(cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normalize) and self.p == other.p

    def with_cache(self, cache_size: int = 1) -> Normalize:
        """The same transform with another cache."""
        return self if self._cache_size == cache_size else Normalize(self.p, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, p=self.p, dim=-1)

    def _inverse(self, y: Any) -> Any:
        return y
