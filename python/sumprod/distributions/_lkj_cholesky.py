"""`LKJCholesky` with a sampler that follows its density."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from sumprod.distributions._family import PUBLIC, Family
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

    __module__ = PUBLIC

    def __init__(
        self, dim: int, concentration: Tensor | float = 1.0, validate_args: bool | None = None
    ) -> None:
        super().__init__(dim, concentration, validate_args)
        left = torch.arange(dim, dtype=self.concentration.dtype, device=self.concentration.device)
        # The first row has nothing left of its diagonal; its draw is thrown away, but must exist.
        self._beta = td.Beta(
            (left / 2).clamp(min=0.5),
            self.concentration.unsqueeze(-1) + (dim - 1 - left.clamp(min=1)) / 2,
            validate_args=False,
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same parameters under a larger batch shape."""
        new = self._get_checked_instance(LKJCholesky, _instance)  # type: ignore[no-untyped-call]
        return super().expand(batch_shape, new)
