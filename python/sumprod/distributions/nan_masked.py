"""Normal distributions whose NaN observations are missing data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sumprod.distributions.torch import MultivariateNormal, Normal

__all__ = ["NanMaskedMultivariateNormal", "NanMaskedNormal"]


class NanMaskedNormal(Normal):
    """`Normal` whose `log_prob` is 0, with zero gradients, where a value is NaN.

    Args:
        loc: mean.
        scale: standard deviation, positive.
        validate_args: whether to check parameters and values.

    Example:
        >>> import torch
        >>> from sumprod.distributions import NanMaskedNormal
        >>> NanMaskedNormal(0.0, 1.0).log_prob(torch.tensor([float("nan"), 0.0])).tolist()
        [0.0, -0.9189385175704956]
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density; 0 for a missing value."""
        present = value == value
        log_prob: Tensor = super().log_prob(torch.where(present, value, self.loc.detach()))
        return log_prob.masked_fill(~present, 0.0)


class NanMaskedMultivariateNormal(MultivariateNormal):
    """`MultivariateNormal` whose `log_prob` is the marginal density of the entries that are not NaN.

    Args:
        loc: mean [*B, D].
        covariance_matrix, precision_matrix, scale_tril: [*B, D, D]; exactly one.
        validate_args: whether to check parameters and values.

    Example:
        >>> import torch
        >>> from sumprod.distributions import NanMaskedMultivariateNormal
        >>> normal = NanMaskedMultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> normal.log_prob(torch.tensor([float("nan"), 0.0])).item()
        -0.9189385175704956
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the observed entries; 0 where all are missing."""
        present = value == value
        if bool(present.all()):
            result: Tensor = super().log_prob(value)  # type: ignore[no-untyped-call]
            return result
        if self._validate_args:
            self._validate_sample(torch.where(present, value, 0.0))
        # A missing entry becomes an independent standard normal at its mean, whose density is known.
        both = present.unsqueeze(-1) & present.unsqueeze(-2)
        identity = torch.eye(value.shape[-1], dtype=self.loc.dtype, device=value.device)
        covariance = torch.where(both, self.covariance_matrix, identity)
        difference = torch.where(present, value - self.loc, 0.0).to(covariance.dtype)
        factor = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(factor, difference.unsqueeze(-1), upper=False).squeeze(-1)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        count = present.sum(-1)
        log_prob: Tensor = -0.5 * (whitened.pow(2).sum(-1) + count * math.log(2 * math.pi)) - half_log_det
        return log_prob
