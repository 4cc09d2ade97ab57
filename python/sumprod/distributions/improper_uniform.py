"""`ImproperUniform`: density one on any support."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape

__all__ = ["ImproperUniform"]


class ImproperUniform(TorchDistribution):
    """A flat prior: log-density 0 on `support`, whose mass may be infinite. It cannot be sampled.

    For algorithms that only need a density: MAP, MCMC, and guides under which the posterior is proper.

    Args:
        support: a constraint.
        batch_shape: the batch shape.
        event_shape: the shape of one value; at least as many dims as the constraint looks at.
        validate_args: whether to check that values lie in the support.

    Raises:
        ValueError: `event_shape` has too few dims.

    Example:
        >>> flat = ImproperUniform(constraints.positive, (), ())
        >>> flat.log_prob(torch.tensor(3.0))
        tensor(0.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, support: Any, batch_shape: Any, event_shape: Any, validate_args: bool | None = None
    ) -> None:
        extra = len(event_shape) - support.event_dim
        if extra < 0:
            raise ValueError(
                f"ImproperUniform expected an event_shape of at least {support.event_dim} dims, because a "
                f"value of {support} has so many; got {tuple(event_shape)}"
            )
        self._support = constraints.independent(support, extra) if extra else support
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    def __repr__(self) -> str:
        return (
            f"ImproperUniform({self._support}, batch_shape: {tuple(self._batch_shape)}, "
            f"event_shape: {tuple(self._event_shape)})"
        )

    @constraints.dependent_property
    def support(self) -> Any:
        """The constraint, over whole values."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same under a larger batch shape."""
        new: Any = self._get_checked_instance(ImproperUniform, _instance)  # type: ignore[no-untyped-call]
        new._support = self._support
        super(ImproperUniform, new).__init__(torch.Size(batch_shape), self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Raises NotImplementedError."""
        raise NotImplementedError(
            "ImproperUniform does not support sampling: its mass may be infinite. Give the site a value by "
            "conditioning, by a guide or by an initial value of MCMC"
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero."""
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast_shape(self._batch_shape, value.shape[: value.dim() - len(self._event_shape)])
        return value.new_zeros(shape)
