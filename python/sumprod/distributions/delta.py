"""A point mass."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.distributions import constraints

from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape, sum_rightmost


class Delta(TorchDistribution):
    """All mass at `v`, optionally with a log-density there.

    Args:
        v: the point, of batch shape + event shape.
        log_density: added to the log-density at `v`, of the batch shape.
        event_dim: number of rightmost dims of `v` that form one value.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, Any]] = {
        "v": constraints.dependent,
        "log_density": constraints.real,
    }

    def __init__(
        self, v: Any, log_density: Any = 0.0, event_dim: int = 0, validate_args: bool | None = None
    ) -> None:
        v = torch.as_tensor(v)
        if event_dim > v.dim():
            raise ValueError(f"Expected event_dim <= v.dim() = {v.dim()}, got {event_dim}")
        batch_dim = v.dim() - event_dim
        batch_shape, event_shape = v.shape[:batch_dim], v.shape[batch_dim:]
        if isinstance(log_density, int | float):
            dtype = v.dtype if v.is_floating_point() else torch.get_default_dtype()
            log_density = torch.full(batch_shape, log_density, dtype=dtype, device=v.device)
        elif log_density.shape != batch_shape:
            raise ValueError(
                f"Expected log_density.shape = {tuple(batch_shape)}, actual {tuple(log_density.shape)}"
            )
        self.v = v
        self.log_density = log_density
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:
        """The real numbers, per element of an event."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat along batch dims."""
        batch_shape = torch.Size(batch_shape)
        return type(self)(
            self.v.expand(batch_shape + self.event_shape),
            self.log_density.expand(batch_shape),
            self.event_dim,
            validate_args=False,
        )

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        """The point, with its gradient."""
        return self.v.expand(torch.Size(sample_shape) + self.v.shape)

    def log_prob(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`log_density` at the point, -inf elsewhere."""
        broadcast_shape(self.v.shape, x.shape)
        log_prob = (x == self.v).to(self.log_density.dtype).log()
        return sum_rightmost(log_prob, self.event_dim) + self.log_density

    @property
    def mean(self) -> torch.Tensor:
        """The point."""
        return self.v

    @property
    def variance(self) -> torch.Tensor:
        """Zero."""
        return torch.zeros_like(self.v)
