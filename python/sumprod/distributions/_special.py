"""Differences of log-gamma functions that keep their digits when an argument is large."""

from __future__ import annotations

import torch
from torch import Tensor

from sumprod.distributions._checks import eager

__all__ = ["is_moderate", "log_binomial", "log_rising", "wide"]

# Beyond this argument Stirling's series with one correction is exact to float64.
_LARGE = 1e4


def wide(x: Tensor) -> Tensor:
    """`x` in float64, where its device has it."""
    return x if x.device.type == "mps" else x.to(torch.float64)


def is_moderate(a: Tensor) -> bool:
    """Whether no entry of `a` is so large that `log_rising` has to take care; False where one cannot look."""
    return eager() and (a.numel() == 0 or bool(a.detach().max().item() <= _LARGE))


def log_rising(a: Tensor, k: Tensor, moderate: bool = False) -> Tensor:
    """log of a (a + 1) ... (a + k - 1) = lgamma(a + k) - lgamma(a), for a > 0 and k >= 0.

    The plain difference loses every digit once lgamma(a) exceeds 1 / eps; for large a the leading terms of
    Stirling's series are subtracted on paper. Differentiable any number of times in `a`.

    Args:
        a, k: they broadcast.
        moderate: the caller knows (see `is_moderate`) that no `a` is large, which saves operators.
    """
    if moderate:
        return torch.lgamma(a + k) - torch.lgamma(a)
    large = a > _LARGE
    big = torch.where(large, a, _LARGE)
    series = (big - 0.5) * torch.log1p(k / big) + k * torch.log(big + k) - k
    series = series + (1 / (big + k) - 1 / big) / 12
    small = torch.where(large, 1.0, a)
    return torch.where(large, series, torch.lgamma(small + k) - torch.lgamma(small))


def log_binomial(n: Tensor, k: Tensor) -> Tensor:
    """log of n! / (k! (n - k)!), for 0 <= k <= n."""
    rest = n - k + 1
    return log_rising(rest, k, is_moderate(rest)) - torch.lgamma(k + 1)
