"""The distribution of a value that carries no information."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.distributions import constraints

from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape


class Unit(TorchDistribution):
    """Values of shape batch_shape + (0,), with an arbitrary density: the carrier of a factor.

    Args:
        log_factor: the log-density, of the batch shape.
        has_rsample: whether the factor depends on reparameterised draws only.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_factor": constraints.real}
    support = constraints.real

    def __init__(
        self,
        log_factor: torch.Tensor,
        *,
        has_rsample: bool | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.log_factor = torch.as_tensor(log_factor)
        super().__init__(self.log_factor.shape, torch.Size((0,)), validate_args=False)
        if has_rsample is not None:
            self.has_rsample = has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat along batch dims."""
        return type(self)(
            self.log_factor.expand(torch.Size(batch_shape)), has_rsample=self.__dict__.get("has_rsample")
        )

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        """An empty tensor."""
        return self.log_factor.new_empty(torch.Size(sample_shape) + self.log_factor.shape + (0,))

    rsample = sample

    def log_prob(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The factor."""
        return self.log_factor.expand(broadcast_shape(self._batch_shape, value.shape[:-1]))
