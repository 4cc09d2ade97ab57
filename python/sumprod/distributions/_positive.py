"""Families on positive numbers, intervals and the simplex."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions._checks import eager, is_positive
from sumprod.distributions._family import NO_DIMS, PUBLIC, Family, LeanFamily, alone, together
from sumprod.distributions.torch_distribution import TorchDistributionMixin

__all__ = ["Beta", "Dirichlet", "Exponential", "Gamma", "Uniform"]


class Exponential(LeanFamily, torch.distributions.Exponential, TorchDistributionMixin):
    """Exponential distribution with mean 1 / rate."""

    __module__ = PUBLIC
    _parameters = ("rate",)

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        self.rate = rate = alone(rate)
        if self._start(rate.shape, validate_args) and not (eager() and is_positive(rate)):
            self._check_closely()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Exponential, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """eps / rate with standard exponential eps."""
        rate = self.rate
        eps = torch.empty(self._draw_shape(sample_shape), dtype=rate.dtype, device=rate.device)
        return eps.exponential_() / rate

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and rate."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.addcmul(self.rate.log(), self.rate, value, value=-1)


class Gamma(LeanFamily, torch.distributions.Gamma, TorchDistributionMixin):
    """Gamma distribution with mean concentration / rate."""

    __module__ = PUBLIC
    _parameters = ("concentration", "rate")

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = concentration, rate = together(concentration, rate)
        if self._start(rate.shape, validate_args) and not (
            eager() and is_positive(concentration) and is_positive(rate)
        ):
            self._check_closely()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Gamma, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """Draws, with implicit gradients to both parameters; never 0."""
        concentration = self.concentration
        if sample_shape:
            concentration = concentration.expand(self._draw_shape(sample_shape))
        value = torch._standard_gamma(concentration) / self.rate
        # Not recorded: the gradient is that of the draw before it was moved away from 0.
        value.detach().clamp_(min=torch.finfo(value.dtype).tiny)
        return value

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and parameters."""
        concentration, rate = self.concentration, self.rate
        if not isinstance(value, Tensor) or value.dtype != rate.dtype:
            value = torch.as_tensor(value, dtype=rate.dtype, device=rate.device)
        if self._validate_args:
            self._validate_sample(value)
        powers = torch.xlogy(concentration, rate) + torch.xlogy(concentration - 1, value)
        return torch.addcmul(powers, rate, value, value=-1) - torch.lgamma(concentration)

    def conjugate_update(self, other: Any) -> Any:
        """The product of two gamma densities."""
        if not isinstance(other, torch.distributions.Gamma):
            return super().conjugate_update(other)
        updated = Gamma(
            self.concentration + other.concentration - 1, self.rate + other.rate, validate_args=False
        )
        return updated, _gamma_constant(self) + _gamma_constant(other) - _gamma_constant(updated)


def _gamma_constant(d: Any) -> Tensor:
    return torch.xlogy(d.concentration, d.rate) - torch.lgamma(d.concentration)


class Beta(LeanFamily, torch.distributions.Beta, TorchDistributionMixin):
    """Beta distribution on (0, 1) with mean concentration1 / (concentration1 + concentration0)."""

    __module__ = PUBLIC
    _parameters = ("concentration1", "concentration0")
    concentration1: Any = None
    concentration0: Any = None

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None) -> None:
        a, b = together(concentration1, concentration0)
        self.concentration1, self.concentration0 = a, b
        if self._start(a.shape, validate_args) and not (eager() and is_positive(a) and is_positive(b)):
            self._check_closely()

    @cached_property
    def _dirichlet(self) -> Any:  # type: ignore[override]
        """torch's moments, entropy and sampler ask for it."""
        return Dirichlet(torch.stack((self.concentration1, self.concentration0), -1), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Beta, batch_shape, _instance)

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and parameters."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        powers = torch.xlogy(a - 1, value) + torch.special.xlog1py(b - 1, -value)
        return powers + (torch.lgamma(a + b) - (torch.lgamma(a) + torch.lgamma(b)))

    def conjugate_update(self, other: Any) -> Any:
        """The product of two beta densities."""
        if not isinstance(other, torch.distributions.Beta):
            return super().conjugate_update(other)
        updated = Beta(
            self.concentration1 + other.concentration1 - 1,
            self.concentration0 + other.concentration0 - 1,
            validate_args=False,
        )
        return updated, _beta_constant(self) + _beta_constant(other) - _beta_constant(updated)


def _beta_constant(d: Any) -> Tensor:
    a, b = d.concentration1, d.concentration0
    return torch.lgamma(a + b) - (torch.lgamma(a) + torch.lgamma(b))


class Dirichlet(Family, torch.distributions.Dirichlet, TorchDistributionMixin):
    """Dirichlet distribution on the simplex with mean concentration / concentration.sum(-1)."""

    __module__ = PUBLIC

    def __init__(self, concentration: Any, validate_args: bool | None = None) -> None:
        if concentration.dim() < 1:
            raise ValueError("`concentration` parameter must be at least one-dimensional.")
        self.concentration = concentration
        self._batch_shape, self._event_shape = concentration.shape[:-1], concentration.shape[-1:]
        if validate_args is not None:
            self._validate_args = validate_args
        if self._validate_args and not (eager() and is_positive(concentration)):
            torch.distributions.Distribution.__init__(
                self, self._batch_shape, self._event_shape, validate_args=validate_args
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        new: Any = self._get_checked_instance(Dirichlet, _instance)  # type: ignore[no-untyped-call]
        new._batch_shape = torch.Size(batch_shape)
        new._event_shape = self._event_shape
        new.concentration = self.concentration.expand(new._batch_shape + self._event_shape)
        new._validate_args = self._validate_args
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.__dict__["has_rsample"]
        return new

    def conjugate_update(self, other: Any) -> Any:
        """The product of two Dirichlet densities."""
        if not isinstance(other, torch.distributions.Dirichlet):
            return super().conjugate_update(other)
        updated = Dirichlet(self.concentration + other.concentration - 1, validate_args=False)
        return updated, _dirichlet_constant(self) + _dirichlet_constant(other) - _dirichlet_constant(updated)


def _dirichlet_constant(d: Any) -> Tensor:
    total = torch.lgamma(d.concentration.sum(-1))
    return total - torch.lgamma(d.concentration).sum(-1)


class Uniform(LeanFamily, torch.distributions.Uniform, TorchDistributionMixin):
    """Uniform distribution on the half-open interval [low, high)."""

    __module__ = PUBLIC
    _parameters = ("low", "high")

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None) -> None:
        self.low, self.high = low, high = together(low, high)
        if self._start(low.shape, validate_args) and not (eager() and is_positive((high - low).detach())):
            self._check_closely()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Uniform, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """low + u * (high - low) with u uniform on [0, 1)."""
        low = self.low
        u = torch.rand(self._draw_shape(sample_shape), dtype=low.dtype, device=low.device)
        return torch.addcmul(low, u, self.high - low)

    def log_prob(self, value: Any) -> Any:
        """-log(high - low) inside, -inf outside (also at `high`), differentiable in the bounds."""
        low, high = self.low, self.high
        if not (isinstance(value, Tensor) and value.shape == self._batch_shape):
            if self._validate_args:
                self._validate_sample(value)
            inside = torch.logical_and(low <= value, high > value)
            return torch.where(inside, -(high - low).log(), -torch.inf)
        log_density = -(high - low).log()
        inside = torch.logical_and(low <= value, high > value)
        if self._validate_args:
            if eager() and bool(inside.all()):
                return log_density
            self._validate_sample(value)
        return torch.where(inside, log_density, -torch.inf)
