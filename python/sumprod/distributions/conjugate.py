"""Compound distributions with their parameter integrated out: the predictive of a conjugate pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Binomial,
    Categorical,
    Dirichlet,
    Gamma,
    Multinomial,
    Poisson,
    constraints,
)
from torch.distributions.utils import broadcast_all

from sumprod.distributions._checks import eager, is_count
from sumprod.distributions._family import Family
from sumprod.distributions._special import is_moderate, log_binomial, log_rising, wide
from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape

__all__ = ["BetaBinomial", "DirichletMultinomial", "GammaPoisson"]


def _with_count(concentration: Tensor, total_count: Tensor | int) -> tuple[Tensor, Tensor]:
    """Both in their common shape. Not by torch's broadcast_all: integer counts would make it round floats."""
    if not concentration.is_floating_point():
        concentration = concentration.to(torch.get_default_dtype())
    if not isinstance(total_count, Tensor):
        total_count = torch.as_tensor(total_count, dtype=concentration.dtype, device=concentration.device)
    shape = broadcast_shape(concentration.shape, total_count.shape)
    return concentration.expand(shape), total_count.expand(shape)


class BetaBinomial(TorchDistribution):
    """Binomial whose probability is Beta distributed: k ~ Binomial(total_count, p), p ~ Beta.

    Args:
        concentration1, concentration0: parameters of the Beta (alpha, beta), positive; broadcast.
        total_count: number of trials, non-negative integers; broadcasts with the concentrations.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: a parameter or a value is outside its constraint; names it.

    Example:
        >>> import torch
        >>> from sumprod.distributions import BetaBinomial
        >>> [round(p, 3) for p in BetaBinomial(2.0, 2.0, 3).log_prob(torch.arange(4.0)).exp().tolist()]
        [0.2, 0.3, 0.3, 0.2]
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
        "total_count": constraints.nonnegative_integer,
    }
    has_enumerate_support = True

    def __init__(
        self,
        concentration1: Tensor | float,
        concentration0: Tensor | float,
        total_count: Tensor | int = 1,
        validate_args: bool | None = None,
    ) -> None:
        concentration1, concentration0 = broadcast_all(concentration1, concentration0)
        self.concentration1, self.total_count = _with_count(concentration1, total_count)
        self.concentration0 = _with_count(concentration0, total_count)[0]
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """0 .. total_count."""
        return constraints.integer_interval(0, self.total_count)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> BetaBinomial:
        """The same parameters, not copied, under a larger batch shape."""
        new: BetaBinomial = self._get_checked_instance(BetaBinomial, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new.concentration1 = self.concentration1.expand(batch_shape)
        new.concentration0 = self.concentration0.expand(batch_shape)
        new.total_count = self.total_count.expand(batch_shape)
        super(BetaBinomial, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Counts of shape sample_shape + batch_shape: a probability first, then the count."""
        with torch.no_grad():
            probs = Beta(self.concentration1, self.concentration0, validate_args=False).sample(
                torch.Size(sample_shape)
            )
            drawn: Tensor = Binomial(self.total_count, probs, validate_args=False).sample()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(k), differentiable in both concentrations."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_mass(value, self.total_count)

    def _log_mass(self, value: Tensor, total_count: Tensor) -> Tensor:
        k, n = wide(value), wide(total_count)
        a, b = wide(self.concentration1), wide(self.concentration0)
        total, rest = a + b, n - k
        moderate = is_moderate(total)
        ones = log_rising(a, k, moderate) + log_rising(b, rest, moderate)
        result = log_binomial(n, k) + ones - log_rising(total, n, moderate)
        return result.to(self.concentration1.dtype)

    def _validate_sample(self, value: Tensor) -> None:
        plain = eager() and isinstance(value, Tensor) and value.shape == self.batch_shape
        if not (plain and is_count(value) and bool((value <= self.total_count).all())):
            super()._validate_sample(value)

    @property
    def mean(self) -> Tensor:
        """n a / (a + b)."""
        return self.total_count * self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def variance(self) -> Tensor:
        """n p (1 - p) (a + b + n) / (a + b + 1), p = a / (a + b)."""
        total = self.concentration1 + self.concentration0
        p = self.concentration1 / total
        return self.total_count * p * (1 - p) * (total + self.total_count) / (total + 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 .. total_count on a new leftmost dim; all counts must be equal."""
        counts = self.total_count
        if counts.numel() == 0 or bool((counts != counts.reshape(-1)[0]).any()):
            raise NotImplementedError(
                "Inhomogeneous total count not supported by `enumerate_support`: total_count of BetaBinomial "
                f"has shape {list(counts.shape)} and differs between batch elements"
            )
        size = int(counts.reshape(-1)[0]) + 1
        values = torch.arange(size, dtype=self.concentration1.dtype, device=self.concentration1.device)
        values = values.reshape(size, *(1 for _ in self.batch_shape))
        return values.expand(size, *self.batch_shape) if expand else values


class DirichletMultinomial(TorchDistribution):
    """Multinomial whose probabilities are Dirichlet distributed.

    Args:
        concentration: [*B, K], positive.
        total_count: number of draws, non-negative integers broadcastable to [*B].
        is_sparse: whether values are mostly zero, so that `log_prob` looks at nonzero counts only; the
            result is the same.
        validate_args: whether to check parameters and values.

    A value is [*, K] with the counts of one draw. As with torch's `Multinomial`, its log-probability is that
    of its own sum, which may be below `total_count`.

    Raises:
        ValueError: a parameter or a value is outside its constraint; names it.

    Example:
        >>> import torch
        >>> from sumprod.distributions import DirichletMultinomial
        >>> urn = DirichletMultinomial(torch.tensor([1.0, 1.0, 2.0]), total_count=2)
        >>> round(urn.log_prob(torch.tensor([1.0, 1.0, 0.0])).exp().item(), 4)
        0.1
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration": constraints.independent(constraints.positive, 1),
        "total_count": constraints.nonnegative_integer,
    }

    def __init__(
        self,
        concentration: Tensor,
        total_count: Tensor | int = 1,
        is_sparse: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(concentration, Tensor) or concentration.dim() < 1:
            got = (
                list(concentration.shape)
                if isinstance(concentration, Tensor)
                else type(concentration).__name__
            )
            raise ValueError(f"DirichletMultinomial: concentration must have shape [*B, K], got {got}")
        if not concentration.is_floating_point():
            concentration = concentration.to(torch.get_default_dtype())
        first, self.total_count = _with_count(concentration[..., 0], total_count)
        self.concentration = concentration.expand(*first.shape, concentration.shape[-1])
        self.is_sparse = is_sparse
        super().__init__(first.shape, concentration.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Counts that sum to total_count at most."""
        return constraints.multinomial(self.total_count)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DirichletMultinomial:
        """The same parameters, not copied, under a larger batch shape."""
        new: DirichletMultinomial = self._get_checked_instance(DirichletMultinomial, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new.concentration = self.concentration.expand(batch_shape + self.event_shape)
        new.total_count = self.total_count.expand(batch_shape)
        new.is_sparse = self.is_sparse
        super(DirichletMultinomial, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Counts of shape sample_shape + batch_shape + [K]: probabilities first, then the counts."""
        with torch.no_grad():
            probs = Dirichlet(self.concentration, validate_args=False).sample(torch.Size(sample_shape))
            counts = self.total_count
            most = int(counts.max()) if counts.numel() else 0
            if counts.numel() == 0 or bool((counts == most).all()):
                drawn: Tensor = Multinomial(most, probs, validate_args=False).sample()
                return drawn
            # Draw as many as the largest count needs, and let each element count only its own.
            draws = Categorical(probs, validate_args=False).sample(torch.Size((most,)))
            number = torch.arange(most, device=draws.device).reshape(most, *(1 for _ in draws.shape[1:]))
            counted = (number < counts).to(probs.dtype).expand(draws.shape)
            return torch.zeros_like(probs).scatter_add(-1, draws.movedim(0, -1), counted.movedim(0, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(counts), [*], differentiable in the concentration."""
        if self._validate_args:
            self._validate_sample(value)
        counts, a = wide(value), wide(self.concentration)
        number, total = counts.sum(-1), a.sum(-1)
        moderate = is_moderate(total)
        if self.is_sparse:
            counts, a = torch.broadcast_tensors(counts, a)
            nonzero = counts != 0
            kept = _log_count(a[nonzero], counts[nonzero], moderate)
            each = torch.zeros_like(counts).masked_scatter(nonzero, kept)
        else:
            each = _log_count(a, counts, moderate)
        return (each.sum(-1) - _log_count(total, number, moderate)).to(self.concentration.dtype)

    def _validate_sample(self, value: Tensor) -> None:
        plain = eager() and isinstance(value, Tensor) and value.shape == self.batch_shape + self.event_shape
        if not (plain and is_count(value) and bool((value.sum(-1) <= self.total_count).all())):
            super()._validate_sample(value)

    @property
    def mean(self) -> Tensor:
        """n a / sum(a)."""
        share = self.concentration / self.concentration.sum(-1, keepdim=True)
        return share * self.total_count.unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """n p (1 - p) (n + sum(a)) / (1 + sum(a)), p = a / sum(a)."""
        number, total = self.total_count.unsqueeze(-1), self.concentration.sum(-1, keepdim=True)
        share = self.concentration / total
        return number * share * (1 - share) * (number + total) / (1 + total)


def _log_count(a: Tensor, k: Tensor, moderate: bool) -> Tensor:
    """log of a (a + 1) ... (a + k - 1) / k!."""
    return log_rising(a, k, moderate) - torch.lgamma(k + 1)


class GammaPoisson(Family, TorchDistribution):
    """Poisson whose rate is Gamma distributed: a negative binomial in the parameters of the Gamma.

    Args:
        concentration, rate: parameters of the Gamma, positive; broadcast.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: a parameter or a value is outside its constraint; names it.

    Example:
        >>> import torch
        >>> from sumprod.distributions import GammaPoisson
        >>> GammaPoisson(1.0, 1.0).log_prob(torch.arange(4.0)).exp().tolist()
        [0.5, 0.25, 0.125, 0.0625]
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self, concentration: Tensor | float, rate: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.concentration, self.rate = broadcast_all(concentration, rate)
        super().__init__(self.concentration.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> GammaPoisson:
        """The same parameters, not copied, under a larger batch shape."""
        new: GammaPoisson = self._get_checked_instance(GammaPoisson, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new.concentration = self.concentration.expand(batch_shape)
        new.rate = self.rate.expand(batch_shape)
        super(GammaPoisson, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Counts of shape sample_shape + batch_shape: a rate first, then the count."""
        with torch.no_grad():
            rate = Gamma(self.concentration, self.rate, validate_args=False).sample(torch.Size(sample_shape))
            drawn: Tensor = Poisson(rate, validate_args=False).sample()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(k), differentiable in both parameters."""
        if self._validate_args:
            self._validate_sample(value)
        k, a, rate = wide(value), wide(self.concentration), wide(self.rate)
        # (rate / (1 + rate))^a (1 / (1 + rate))^k, in a form that does not cancel for large rates.
        result = _log_count(a, k, is_moderate(a)) - a * torch.log1p(1 / rate) - k * torch.log1p(rate)
        return result.to(self.concentration.dtype)

    @property
    def mean(self) -> Tensor:
        """a / rate."""
        return self.concentration / self.rate

    @property
    def variance(self) -> Tensor:
        """a (1 + rate) / rate^2."""
        return self.concentration / self.rate.pow(2) * (1 + self.rate)
