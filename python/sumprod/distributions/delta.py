"""`Delta`: all mass at one point."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions._checks import eager, is_real
from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import is_identically_zero

__all__ = ["Delta"]


class Delta(TorchDistribution):
    """All mass at the point `v`.

    Args:
        v: the point, of shape batch_shape + event_shape; any dtype, or a number.
        log_density: added to the log-density, a number or a tensor that broadcasts with batch_shape. It
            lets a point stand in for a draw of another distribution, whose log-density it carries.
        event_dim: number of rightmost dims of `v` that form one value.
        validate_args: whether to check `log_density` and the shapes of values.

    Raises:
        ValueError: `event_dim` is negative or larger than the number of dims of `v`; `log_density` does
            not broadcast to the batch shape, or is NaN.

    Example:
        >>> point = Delta(torch.tensor([1.0, 2.0]), event_dim=1)
        >>> point.log_prob(torch.tensor([[1.0, 2.0], [1.0, 3.0]]))
        tensor([0., -inf])
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, Any]] = {
        "v": constraints.dependent,
        "log_density": constraints.real,
    }

    def __init__(
        self, v: Any, log_density: Any = 0.0, event_dim: int = 0, validate_args: bool | None = None
    ) -> None:
        if not isinstance(v, Tensor):
            v = torch.as_tensor(v)
        batch_dim = v.dim() - event_dim
        if batch_dim < 0 or event_dim < 0:
            raise ValueError(
                f"Expected event_dim <= v.dim(), actual {event_dim} vs {v.dim()}; v: {tuple(v.shape)}"
                " and event_dim counts the rightmost of its dims that form one value"
            )
        shape = v.shape
        self.v = v
        self._batch_shape, self._event_shape = shape[:batch_dim], shape[batch_dim:]
        if validate_args is not None:
            self._validate_args = validate_args
        if isinstance(log_density, Tensor):
            self._log_density = log_density = self._fitted(log_density)
            if self._validate_args and not (eager() and is_real(log_density)):
                torch.distributions.Distribution.__init__(
                    self, self._batch_shape, self._event_shape, validate_args=validate_args
                )
        elif self._validate_args and math.isnan(log_density):
            raise ValueError(
                f"Expected parameter log_density of {type(self).__name__} to be a number, got nan"
            )
        self._log_density = log_density

    def _fitted(self, log_density: Tensor) -> Tensor:
        if log_density.shape == self._batch_shape:
            return log_density
        try:
            return log_density.expand(self._batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected log_density to broadcast to the batch shape {tuple(self._batch_shape)} of Delta, "
                f"got shape {tuple(log_density.shape)}; perhaps event_dim={len(self._event_shape)} is wrong"
            ) from None

    @property
    def log_density(self) -> Any:
        """What is added to the log-density, as a tensor of the batch shape."""
        if not isinstance(self._log_density, Tensor):
            number = torch.full((), self._log_density, dtype=self._density_dtype, device=self.v.device)
            return number.expand(self._batch_shape)
        return self._log_density

    @property
    def _density_dtype(self) -> torch.dtype:
        return self.v.dtype if self.v.is_floating_point() else torch.get_default_dtype()

    @property
    def has_zero_log_density(self) -> bool:
        """Whether `log_density` is the number 0; a tensor is not looked at."""
        return is_identically_zero(self._log_density)

    def __repr__(self) -> str:
        v = self.v if self.v.numel() == 1 else tuple(self.v.shape)
        return f"Delta(v: {v}, log_density: {self._log_density}, event_dim: {len(self._event_shape)})"

    @constraints.dependent_property
    def support(self) -> Any:
        """The real numbers."""
        event_dim = len(self._event_shape)
        return constraints.independent(constraints.real, event_dim) if event_dim else constraints.real

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; the point is shared, not copied."""
        new: Any = self._get_checked_instance(Delta, _instance)  # type: ignore[no-untyped-call]
        new._batch_shape = torch.Size(batch_shape)
        new._event_shape = self._event_shape
        new.v = self.v.expand(new._batch_shape + self._event_shape)
        log_density = self._log_density
        new._log_density = (
            log_density.expand(new._batch_shape) if isinstance(log_density, Tensor) else log_density
        )
        new._validate_args = self._validate_args
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.__dict__["has_rsample"]
        return new

    def rsample(self, sample_shape: Any = ()) -> Any:
        """The point, with its gradient."""
        return self.v.expand((*sample_shape, *self.v.shape)) if sample_shape else self.v.expand(self.v.shape)

    def sample(self, sample_shape: Any = ()) -> Any:
        """The point, without gradient."""
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Any) -> Any:
        """`log_density` at the point, -inf elsewhere. No gradient reaches `value` or the point."""
        v = self.v
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, device=v.device)
        plain = self.has_zero_log_density
        if plain and self._is_the_point(value):
            return torch.zeros(self._batch_shape, dtype=self._density_dtype, device=v.device)
        same = value == v
        event_dim = len(self._event_shape)
        if event_dim:
            same = same.all(-1) if event_dim == 1 else same.flatten(-event_dim).all(-1)
        zero = torch.zeros((), dtype=self._density_dtype, device=v.device)
        log_prob = torch.where(same, zero, -math.inf)
        return log_prob if plain else log_prob + self._log_density

    def _is_the_point(self, value: Tensor) -> bool:
        """Whether `value` is `v` all over, where that is quick to say: the usual question of a trace."""
        v = self.v
        alike = value.shape == v.shape and value.dtype == v.dtype
        return alike and v.device.type == value.device.type == "cpu" and eager() and torch.equal(value, v)

    @property
    def mean(self) -> Any:
        """The point."""
        return self.v

    @property
    def variance(self) -> Any:
        """Zero."""
        return torch.zeros_like(self.v)
