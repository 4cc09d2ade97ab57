"""Families of location and scale: Normal, Cauchy, Laplace and what exp and abs make of them."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions.transforms import AbsTransform, ExpTransform

from sumprod.distributions._checks import eager, is_positive, is_real
from sumprod.distributions._family import NO_DIMS, PUBLIC, LeanFamily, alone, together
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from sumprod.distributions.util import broadcast_shape

__all__ = ["Cauchy", "HalfCauchy", "HalfNormal", "Laplace", "LogNormal", "Normal"]

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))
_LOG_PI = math.log(math.pi)
_LOG_2 = math.log(2)
_SURELY_POSITIVE = 1e-6  # numbers above it are positive in every dtype
_LARGE = 1 << 12  # entries of data; for fewer, an operator's overhead exceeds its work


def _normal_log_density(deviation: Tensor, scale: Tensor, constant: float) -> Tensor:
    """-z^2/2 - log(scale) + constant, where z = deviation / scale.

    Dividing before squaring keeps scales apart whose square would underflow.
    """
    z = deviation / scale
    return torch.addcmul(torch.rsub(scale.log(), constant), z, z, value=-0.5)


class _NormalOfData(torch.autograd.Function):
    """The log-density of data under parameters with fewer entries.

    Gradients are weighted sums of z and z^2 over the data, divided by the scale once per parameter: two
    passes over the densities where the operators one by one take a dozen.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        z = (value - loc) / scale
        ctx.save_for_backward(value, loc, scale, z)
        return torch.addcmul(torch.rsub(scale.log(), -_LOG_SQRT_2PI), z, z, value=-0.5)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, loc, scale, z = ctx.saved_tensors
        if torch.is_grad_enabled():  # z was computed without a graph
            z = (value - loc) / scale
        shape = broadcast_shape(loc.shape, scale.shape)
        weighted = grad * z
        of_loc = (weighted.sum_to_size(shape) / scale).sum_to_size(loc.shape)
        if not ctx.needs_input_grad[2]:
            return None, of_loc, None
        spread = weighted.mul_(z).sum_to_size(shape) - grad.sum_to_size(shape)
        return None, of_loc, (spread / scale).sum_to_size(scale.shape)


def _is_data(value: Any, loc: Tensor, scale: Tensor) -> bool:
    """Whether `_NormalOfData` is right for a value, and saves work."""
    return (
        isinstance(value, Tensor)
        and value.numel() >= max(_LARGE, 4 * loc.numel(), 4 * scale.numel())
        and (loc.requires_grad or scale.requires_grad)
        and torch.is_grad_enabled()
        and not value.requires_grad
        and value.dtype == loc.dtype == scale.dtype
        and value.device == loc.device == scale.device
        and eager()
        and forward_ad._current_level < 0  # no forward derivatives, which this Function lacks
    )


class _LocationScale(LeanFamily):
    """Families with the parameters `loc` (real) and `scale` (positive)."""

    _parameters = ("loc", "scale")
    loc: Any = None
    scale: Any = None

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        surely = isinstance(scale, (int, float)) and scale > _SURELY_POSITIVE
        self.loc, self.scale = loc, scale = together(loc, scale)
        if self._start(loc.shape, validate_args) and not (
            eager() and is_real(loc) and (surely or is_positive(scale))
        ):
            self._check_closely()

    def _noise(self, sample_shape: Any) -> Any:
        """A tensor of a draw's shape, still without values."""
        return torch.empty(self._draw_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)


class Normal(_LocationScale, torch.distributions.Normal, TorchDistributionMixin):
    """Normal distribution with mean `loc` and standard deviation `scale`.

    Example:
        >>> Normal(0.0, 1.0).expand_by([2]).log_prob(torch.tensor([0.0, 1.0]))
        tensor([-0.9189, -1.4189])
    """

    __module__ = PUBLIC

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Normal, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """loc + eps * scale with standard normal eps."""
        return torch.addcmul(self.loc, self._noise(sample_shape).normal_(), self.scale)

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """As `rsample`, without gradient."""
        return torch.addcmul(self.loc.detach(), self._noise(sample_shape).normal_(), self.scale.detach())

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and parameters."""
        if self._validate_args:
            self._validate_sample(value)
        loc, scale = self.loc, self.scale
        if _is_data(value, loc, scale):
            return _NormalOfData.apply(value, loc, scale)  # type: ignore[no-untyped-call]
        return _normal_log_density(value - loc, scale, -_LOG_SQRT_2PI)

    def conjugate_update(self, other: Any) -> Any:
        """The product of two normal densities: precisions add."""
        if not isinstance(other, torch.distributions.Normal):
            return super().conjugate_update(other)
        # Precisions may be zero: a flat factor changes nothing.
        precision, other_precision = self.scale.square().reciprocal(), other.scale.square().reciprocal()
        total = precision + other_precision
        loc = (precision * self.loc + other_precision * other.loc) / total
        spread = torch.hypot(self.scale, other.scale)
        log_normalizer = _normal_log_density(self.loc - other.loc, spread, -_LOG_SQRT_2PI)
        return Normal(loc, total.rsqrt(), validate_args=False), log_normalizer


class LogNormal(_LocationScale, torch.distributions.LogNormal, TorchDistributionMixin):
    """Distribution of exp(x) for x ~ Normal(loc, scale)."""

    __module__ = PUBLIC

    @cached_property
    def base_dist(self) -> Any:  # type: ignore[override]
        """The distribution of the logarithm."""
        return Normal(self.loc, self.scale, validate_args=False)

    @cached_property
    def transforms(self) -> Any:  # type: ignore[override]
        """From `base_dist` to this distribution."""
        return [ExpTransform()]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(LogNormal, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """exp(loc + eps * scale) with standard normal eps."""
        return torch.addcmul(self.loc, self._noise(sample_shape).normal_(), self.scale).exp()

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """As `rsample`, without gradient."""
        noise = self._noise(sample_shape).normal_()
        return torch.addcmul(self.loc.detach(), noise, self.scale.detach()).exp_()

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and parameters."""
        if self._validate_args:
            self._validate_sample(value)
        y = value.log()
        return _normal_log_density(y - self.loc, self.scale, -_LOG_SQRT_2PI) - y


class Cauchy(_LocationScale, torch.distributions.Cauchy, TorchDistributionMixin):
    """Cauchy distribution around `loc` with half width `scale` at half maximum."""

    __module__ = PUBLIC

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Cauchy, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """loc + eps * scale with standard Cauchy eps."""
        return torch.addcmul(self.loc, self._noise(sample_shape).cauchy_(), self.scale)

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and parameters."""
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        return torch.rsub(self.scale.log(), -_LOG_PI) - z.square().log1p()


class Laplace(_LocationScale, torch.distributions.Laplace, TorchDistributionMixin):
    """Laplace (double exponential) distribution around `loc` with mean absolute deviation `scale`."""

    __module__ = PUBLIC

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Laplace, batch_shape, _instance)

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and parameters."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.rsub(self.scale.log(), -_LOG_2) - (value - self.loc).abs() / self.scale


class _Half(LeanFamily):
    """|x| for x symmetric around 0 with a `scale`."""

    _parameters = ("scale",)
    scale: Any = None

    def __init__(self, scale: Any, validate_args: bool | None = None) -> None:
        self.scale = scale = alone(scale)
        if self._start(scale.shape, validate_args) and not (eager() and is_positive(scale)):
            self._check_closely()

    @cached_property
    def transforms(self) -> Any:
        """From `base_dist` to this distribution."""
        return [AbsTransform()]

    def _where_supported(self, log_prob: Tensor, value: Tensor) -> Any:
        """-inf at negative values; a value that was validated has none."""
        return log_prob if self._validate_args else torch.where(value >= 0, log_prob, -math.inf)

    def _noise(self, sample_shape: Any) -> Any:
        scale = self.scale
        return torch.empty(self._draw_shape(sample_shape), dtype=scale.dtype, device=scale.device)


class HalfNormal(_Half, torch.distributions.HalfNormal, TorchDistributionMixin):  # type: ignore[override]
    """Distribution of |x| for x ~ Normal(0, scale)."""

    __module__ = PUBLIC

    @cached_property
    def base_dist(self) -> Any:  # type: ignore[override]
        """The distribution on the whole line."""
        return Normal(0, self.scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(HalfNormal, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """|eps * scale| with standard normal eps."""
        return (self._noise(sample_shape).normal_() * self.scale).abs()

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """As `rsample`, without gradient."""
        return (self._noise(sample_shape).normal_() * self.scale.detach()).abs_()

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and scale; -inf at negative values."""
        if self._validate_args:
            self._validate_sample(value)
        return self._where_supported(_normal_log_density(value, self.scale, _LOG_2 - _LOG_SQRT_2PI), value)


class HalfCauchy(_Half, torch.distributions.HalfCauchy, TorchDistributionMixin):  # type: ignore[override]
    """Distribution of |x| for x ~ Cauchy(0, scale)."""

    __module__ = PUBLIC

    @cached_property
    def base_dist(self) -> Any:  # type: ignore[override]
        """The distribution on the whole line."""
        return Cauchy(0, self.scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(HalfCauchy, batch_shape, _instance)

    def rsample(self, sample_shape: Any = NO_DIMS) -> Any:
        """|eps * scale| with standard Cauchy eps."""
        return (self._noise(sample_shape).cauchy_() * self.scale).abs()

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """As `rsample`, without gradient."""
        return (self._noise(sample_shape).cauchy_() * self.scale.detach()).abs_()

    def log_prob(self, value: Any) -> Any:
        """Log-density, differentiable in value and scale; -inf at negative values."""
        if self._validate_args:
            self._validate_sample(value)
        scale = self.scale
        value = torch.as_tensor(value, dtype=scale.dtype, device=scale.device)
        log_prob = torch.rsub(scale.log(), _LOG_2 - _LOG_PI) - (value / scale).square().log1p()
        return self._where_supported(log_prob, value)
