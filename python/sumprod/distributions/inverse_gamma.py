"""`InverseGamma`: the reciprocal of a gamma variable."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from sumprod.distributions._family import Family
from sumprod.distributions.torch_distribution import TorchDistributionMixin

__all__ = ["InverseGamma"]


class InverseGamma(Family, td.InverseGamma, TorchDistributionMixin):
    """The law of 1 / x for x ~ Gamma(concentration, rate), the conjugate prior of a normal's variance.

    Args:
        concentration: shape, positive.
        rate: rate of the gamma variable, which is the scale of this one; positive. Broadcasts.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: a parameter or a value is outside its constraint; names it.

    Example:
        >>> import torch
        >>> from sumprod.distributions import InverseGamma
        >>> InverseGamma(torch.tensor(3.0), torch.tensor(4.0)).mean.item()
        2.0
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-density, differentiable in value and parameters.

        Written out rather than as that of a transformed gamma variable, whose Jacobian overflows for small
        values.
        """
        concentration, rate = self.concentration, self.rate
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=rate.dtype, device=rate.device)
        if self._validate_args:
            self._validate_sample(value)
        constant = concentration * rate.log() - torch.lgamma(concentration)
        log_prob: Tensor = constant - (concentration + 1) * value.log() - rate / value
        return log_prob
