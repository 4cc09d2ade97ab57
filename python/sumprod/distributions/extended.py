"""Binomials that give a value outside their range probability zero instead of an error."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sumprod.distributions import constraints
from sumprod.distributions.conjugate import BetaBinomial
from sumprod.distributions.torch import Binomial
from sumprod.distributions.torch_distribution import TorchDistribution

__all__ = ["ExtendedBetaBinomial", "ExtendedBinomial"]


def _inside(value: Tensor, total_count: Tensor) -> tuple[Tensor, Tensor]:
    """Which values lie in 0 .. total_count, and the values with 0 in place of the others."""
    inside = (value >= 0) & (value <= total_count)
    return inside, torch.where(inside, value, torch.zeros((), dtype=value.dtype, device=value.device))


class ExtendedBinomial(Binomial):
    """`Binomial` on all integers: log-probability -inf, with zero gradients, outside 0 .. total_count.

    Args:
        total_count: number of trials, any integers; a negative one makes every value impossible.
        probs: probability of success; give exactly one of `probs` and `logits`.
        logits: log odds of success.
        validate_args: whether to check parameters and values.

    Example:
        >>> import torch
        >>> from sumprod.distributions import ExtendedBinomial
        >>> ExtendedBinomial(2, torch.tensor(0.5)).log_prob(torch.tensor([-1.0, 1.0, 3.0])).exp().tolist()
        [0.0, 0.5, 0.0]
    """

    arg_constraints: dict[str, Any] = {  # noqa: RUF012
        "total_count": constraints.integer,
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }
    support: Any = constraints.integer

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), -inf outside the range."""
        if self._validate_args:
            self._validate_sample(value)
        inside, k = _inside(value, self.total_count)
        n, logits = self.total_count.clamp(min=0), self.logits
        ways = torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - torch.minimum(k, n) + 1.0)
        log_prob: Tensor = ways + k * logits + n * logsigmoid(-logits)
        return log_prob.masked_fill(~inside, -torch.inf)


class ExtendedBetaBinomial(BetaBinomial):
    """`BetaBinomial` on all integers: log-probability -inf, with zero gradients, outside 0 .. total_count.

    Args:
        concentration1, concentration0: parameters of the Beta, positive; broadcast.
        total_count: number of trials, any integers; a negative one makes every value impossible.
        validate_args: whether to check parameters and values.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
        "total_count": constraints.integer,
    }
    support: Any = constraints.integer

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), -inf outside the range."""
        if self._validate_args:
            self._validate_sample(value)
        inside, safe = _inside(value, self.total_count)
        return self._log_mass(safe, self.total_count.clamp(min=0)).masked_fill(~inside, -torch.inf)

    _validate_sample = TorchDistribution._validate_sample
