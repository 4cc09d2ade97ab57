"""Distributions with extra zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property, logits_to_probs, probs_to_logits
from torch.nn.functional import logsigmoid

from sumprod.distributions._checks import eager
from sumprod.distributions._family import Family
from sumprod.distributions.torch import NegativeBinomial, Poisson
from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape

__all__ = ["ZeroInflatedDistribution", "ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson"]


class ZeroInflatedDistribution(Family, TorchDistribution):
    """A univariate distribution whose draws are replaced by zero with probability `gate`.

    Args:
        base_dist: a distribution without event dims.
        gate: probability in [0, 1] of an extra zero; broadcasts with `base_dist`. 0 and 1 are exact.
        gate_logits: log odds of `gate`; give exactly one of the two.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: both or none of `gate` and `gate_logits`; a base with event dims; a parameter or value
            outside its constraint.

    Example:
        >>> import torch
        >>> from sumprod.distributions import ZeroInflatedDistribution, Poisson
        >>> extra = ZeroInflatedDistribution(Poisson(1.0), gate=0.5)
        >>> [round(p, 3) for p in extra.log_prob(torch.tensor([0.0, 1.0])).exp().tolist()]
        [0.684, 0.184]
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "gate": constraints.unit_interval,
        "gate_logits": constraints.real,
    }

    def __init__(
        self,
        base_dist: Any,
        *,
        gate: Tensor | float | None = None,
        gate_logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (gate is None) == (gate_logits is None):
            given = "neither" if gate is None else "both"
            raise ValueError(
                "Either `gate` or `gate_logits` must be specified, but not both. "
                f"{type(self).__name__} got {given}"
            )
        if base_dist.event_shape:
            raise ValueError(
                f"{type(self).__name__} expected empty base_dist.event_shape but got "
                f"{base_dist.event_shape}; an extra zero replaces one number, so keep dims as batch dims and "
                "call .to_event(n) on the result"
            )
        self._by_logits = gate is None
        given_gate = torch.as_tensor(gate_logits if gate is None else gate)
        if not given_gate.is_floating_point():
            given_gate = given_gate.to(torch.get_default_dtype())
        batch_shape = torch.Size(broadcast_shape(given_gate.shape, base_dist.batch_shape))
        self._set_gate(given_gate.expand(batch_shape))
        self.base_dist = base_dist if base_dist.batch_shape == batch_shape else base_dist.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    def _set_gate(self, gate: Tensor) -> None:
        # The other one is a lazy property, so that it costs nothing and is not checked unless it is used.
        self.__dict__["gate_logits" if self._by_logits else "gate"] = gate

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the base distribution."""
        support: constraints.Constraint = self.base_dist.support
        return support

    @lazy_property
    def gate(self) -> Tensor:
        """Probability of an extra zero."""
        return logits_to_probs(self.gate_logits, is_binary=True)

    @lazy_property
    def gate_logits(self) -> Tensor:
        """Log odds of an extra zero."""
        return probs_to_logits(self.gate, is_binary=True)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ZeroInflatedDistribution:
        """The same parameters, not copied, under a larger batch shape."""
        new: ZeroInflatedDistribution = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new._by_logits = self._by_logits
        new._set_gate((self.gate_logits if self._by_logits else self.gate).expand(batch_shape))
        new.base_dist = self.base_dist.expand(batch_shape)
        super(ZeroInflatedDistribution, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws of shape sample_shape + batch_shape: the extra zeros first, then the base."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            extra = torch.bernoulli(self.gate.expand(shape))
            drawn: Tensor = self.base_dist.expand(shape).sample()
            return torch.where(extra != 0, torch.zeros((), dtype=drawn.dtype, device=drawn.device), drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), differentiable in the gate and in the parameters of the base."""
        if self._validate_args:
            self._validate_sample(value)
        base = self.base_dist.log_prob(value)
        zero = value == 0
        return self._by_log_odds(base, zero) if self._by_logits else self._by_probability(base, zero)

    def _by_log_odds(self, base: Tensor, zero: Tensor) -> Tensor:
        passed = logsigmoid(-self.gate_logits) + base
        return torch.where(zero, torch.logaddexp(logsigmoid(self.gate_logits), passed), passed)

    def _by_probability(self, base: Tensor, zero: Tensor) -> Tensor:
        gate = self.gate
        if eager() and gate.numel():
            least, most = torch.aminmax(gate.detach())
            if least.item() > 0 and most.item() < 1:
                passed = torch.log1p(-gate) + base
                return torch.where(zero, torch.logaddexp(gate.log(), passed), passed)
        return _inflated(base, zero, gate)

    @property
    def mean(self) -> Tensor:
        """(1 - gate) times the mean of the base."""
        mean: Tensor = (1 - self.gate) * self.base_dist.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """From the second moment, (1 - gate) (variance + mean^2)."""
        mean = self.base_dist.mean
        variance: Tensor = (1 - self.gate) * (self.base_dist.variance + self.gate * mean.pow(2))
        return variance


def _inflated(base: Tensor, zero: Tensor, gate: Tensor) -> Tensor:
    """log p where the gate may be 0 or 1.

    Branches that are not taken get a gate of 1/2: at 0 and 1 their slopes are infinite, and zero times
    infinity is NaN.
    """
    gate, zero = torch.broadcast_tensors(gate, zero)
    half = torch.full_like(gate, 0.5)
    inner = torch.where(zero & (gate > 0) & (gate < 1), gate, half)
    mixed = torch.logaddexp(inner.log(), torch.log1p(-inner) + base)
    # log(gate + (1 - gate) p) at the ends of the unit interval, as tangents: right in value and slope.
    at_zero = base + gate * torch.expm1(-base.clamp(min=-0.9 * math.log(torch.finfo(base.dtype).max)))
    at_one = (1 - gate) * torch.expm1(base)
    inflated = torch.where(gate == 0, at_zero, torch.where(gate == 1, at_one, mixed))
    passed = torch.log1p(-torch.where(zero, half, gate)) + base
    return torch.where(zero, inflated, passed)


class ZeroInflatedPoisson(ZeroInflatedDistribution):
    """Poisson counts with extra zeros (Lambert 1992).

    Args:
        rate: rate of the Poisson, not negative; broadcasts with the gate.
        gate: probability in [0, 1] of an extra zero.
        gate_logits: log odds of `gate`; give exactly one of the two.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: as `ZeroInflatedDistribution`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "rate": constraints.nonnegative,
        "gate": constraints.unit_interval,
        "gate_logits": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        rate: Tensor | float,
        *,
        gate: Tensor | float | None = None,
        gate_logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        base = Poisson(rate, validate_args=False)
        super().__init__(base, gate=gate, gate_logits=gate_logits, validate_args=validate_args)

    @property
    def rate(self) -> Tensor:
        """Rate of the Poisson."""
        rate: Tensor = self.base_dist.rate
        return rate


class ZeroInflatedNegativeBinomial(ZeroInflatedDistribution):
    """Negative binomial counts with extra zeros.

    Args:
        total_count: number of failures to wait for, non-negative; broadcasts.
        probs: probability of success in [0, 1).
        logits: log odds of `probs`; give exactly one of the two.
        gate: probability in [0, 1] of an extra zero.
        gate_logits: log odds of `gate`; give exactly one of the two.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: as `ZeroInflatedDistribution`; or both or none of `probs` and `logits`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "total_count": constraints.greater_than_eq(0),
        "probs": constraints.half_open_interval(0.0, 1.0),
        "logits": constraints.real,
        "gate": constraints.unit_interval,
        "gate_logits": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        total_count: Tensor | float,
        *,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        gate: Tensor | float | None = None,
        gate_logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        base = NegativeBinomial(total_count, probs=probs, logits=logits, validate_args=False)
        # Only the parameter that was given is checked; the other one is derived when somebody asks for it.
        given = "probs" if logits is None else "logits"
        self.__dict__[given] = getattr(base, given)
        super().__init__(base, gate=gate, gate_logits=gate_logits, validate_args=validate_args)

    @property
    def total_count(self) -> Tensor:
        """Number of failures to wait for."""
        total_count: Tensor = self.base_dist.total_count
        return total_count

    @lazy_property
    def probs(self) -> Tensor:
        """Probability of success."""
        probs: Tensor = self.base_dist.probs
        return probs

    @lazy_property
    def logits(self) -> Tensor:
        """Log odds of success."""
        logits: Tensor = self.base_dist.logits
        return logits
