"""`Unit`: the distribution of a value that carries no information, for factors."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape

__all__ = ["Unit"]


class Unit(TorchDistribution):
    """Values of event shape (0,), which hold nothing, with an arbitrary log-density.

    Args:
        log_factor: the log-density, of the batch shape; a tensor or a number.
        has_rsample: whether the factor depends on reparameterised draws only. None leaves it False.
        validate_args: accepted for uniformity. A NaN factor is not refused here: the trace of a program
            warns of it and names the site.

    Example:
        >>> factor = Unit(torch.tensor(-1.5))
        >>> factor.log_prob(factor.sample())
        tensor(-1.5000)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_factor": constraints.real}
    support = constraints.real

    def __init__(
        self, log_factor: Any, *, has_rsample: bool | None = None, validate_args: bool | None = None
    ) -> None:
        if not isinstance(log_factor, Tensor):
            log_factor = torch.as_tensor(log_factor)
        self.log_factor = log_factor
        self._batch_shape, self._event_shape = log_factor.shape, torch.Size((0,))
        if has_rsample is not None:
            self.has_rsample = has_rsample
        if validate_args is not None:
            self._validate_args = validate_args

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; the factor is shared, not copied."""
        new: Any = self._get_checked_instance(Unit, _instance)  # type: ignore[no-untyped-call]
        new._batch_shape, new._event_shape = torch.Size(batch_shape), self._event_shape
        new.log_factor = self.log_factor.expand(new._batch_shape)
        new._validate_args = self._validate_args
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.__dict__["has_rsample"]
        return new

    def sample(self, sample_shape: Any = ()) -> Any:
        """A tensor of shape sample_shape + batch_shape + (0,)."""
        return self.log_factor.new_empty((*sample_shape, *self._batch_shape, 0))

    def rsample(self, sample_shape: Any = ()) -> Any:
        """The same: there is nothing to differentiate."""
        return self.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Any:
        """The factor, expanded by the sample dims of `value`."""
        if value.dim() - 1 == len(self._batch_shape) and value.shape[:-1] == self._batch_shape:
            return self.log_factor
        return self.log_factor.expand(broadcast_shape(self._batch_shape, value.shape[:-1]))
