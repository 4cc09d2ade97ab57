"""`LKJCholesky` with a sampler that follows its density."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from sumprod.distributions._family import Family, alone
from sumprod.distributions.torch_distribution import TorchDistributionMixin

__all__ = ["LKJCholesky"]


class LKJCholesky(Family, td.LKJCholesky, TorchDistributionMixin):
    """Lower Cholesky factors of correlation matrices with density proportional to det^(concentration - 1).

    Drawn row by row (the onion method of Lewandowski, Kurowicka and Joe 2009, section 3.2): i entries left of
    the diagonal have a uniform direction and a squared length from
    Beta(i / 2, concentration + (dim - 1 - i) / 2). torch 2.13 uses Beta(i - 1/2, ...) there, so that from the
    third row on its draws are too long.

    Args:
        dim: number of rows, at least 2.
        concentration: positive, [*B].
        validate_args: whether to check parameters and values.

    Example:
        >>> import torch
        >>> LKJCholesky(3, torch.tensor([1.0, 2.0])).sample().shape
        torch.Size([2, 3, 3])
    """

    def __init__(
        self, dim: int, concentration: Tensor | float = 1.0, validate_args: bool | None = None
    ) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2:
            raise ValueError(f"Expected dim to be an integer greater than or equal to 2. Found dim={dim!r}.")
        self.dim = dim
        self.concentration = alone(concentration)
        td.Distribution.__init__(
            self, self.concentration.shape, torch.Size((dim, dim)), validate_args=validate_args
        )

    @cached_property
    def _beta(self) -> td.Beta:  # type: ignore[override]
        left = torch.arange(self.dim, dtype=self.concentration.dtype, device=self.concentration.device)
        # The first row has nothing left of its diagonal; its draw is thrown away, but must exist.
        left = left.clamp(min=1)
        return td.Beta(
            left / 2, self.concentration.unsqueeze(-1) + (self.dim - 1 - left) / 2, validate_args=False
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same parameters under a larger batch shape."""
        new: Any = self._get_checked_instance(LKJCholesky, _instance)  # type: ignore[no-untyped-call]
        new.dim = self.dim
        new.concentration = self.concentration.expand(torch.Size(batch_shape))
        td.Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
