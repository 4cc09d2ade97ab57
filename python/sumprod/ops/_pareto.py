"""The generalised Pareto distribution fitted to the tail of a sample, and importance weights smoothed by it.

Sources: Zhang and Stephens, "A new and efficient estimation method for the generalized Pareto
distribution", Technometrics 51 (2009); Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed
importance sampling", JMLR 25 (2024).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SmoothedWeights", "fit_generalized_pareto", "psis", "tail_length"]

_BLOCK = 1 << 22  # entries of the largest temporary of `psis`, 32 MiB of doubles
_LOG_TINY = math.log(torch.finfo(torch.float64).tiny)  # lower cuts would leave the excess no digits
_SMALLEST_TAIL = 5  # Vehtari et al., section 3: no fit with fewer points


class SmoothedWeights(NamedTuple):
    """What `psis` returns."""

    log_weights: Tensor
    """The shape of the input: smoothed, normalised log-weights."""
    pareto_k: Tensor
    """Without the dim: the estimated shape of the weights' tail; above 0.7 estimates are unreliable."""


def fit_generalized_pareto(X: Tensor) -> tuple[float, float]:
    """Shape k and scale sigma of a generalised Pareto distribution on the positive half-line.

    The quasi-Bayesian estimate of Zhang and Stephens (2009), pulled towards k = 0.5 as if ten more
    points had said so (Vehtari et al. 2024, appendix G).

    Args:
        X: positive numbers, 1-d, in any order; at least one.

    Returns:
        `(k, sigma)`; k > 0 is a heavy tail, with finite moments up to order 1/k.

    Raises:
        ValueError: X is not 1-d or empty.

    Example:
        >>> import torch
        >>> grid = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
        >>> k, sigma = fit_generalized_pareto((1 - grid) ** -0.25 - 1)  # quantiles at k = sigma = 1/4
        >>> abs(k - 0.25) < 0.01, abs(sigma - 0.25) < 0.01
        (True, True)
    """
    if not isinstance(X, Tensor) or X.dim() != 1 or X.numel() == 0:
        found = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(
            f"fit_generalized_pareto: Input X must be a 1-dimensional torch tensor, not empty; got {found}"
        )
    k, sigma = _fit(X.detach().double().sort().values.unsqueeze(0))
    return float(k), float(sigma)


def _fit(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes and scales (batch,) of ascending positive samples (batch, n), in float64."""
    n = excess.shape[-1]
    points = 30 + int(math.sqrt(n))
    grid = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device) - 0.5
    quartile = excess[:, int(n / 4 + 0.5) - 1 : int(n / 4 + 0.5)] if n > 1 else excess[:, :1]
    theta = (1 - (points / grid).sqrt()) / (3 * quartile) + 1 / excess[:, -1:]
    shape = torch.log1p(-theta.unsqueeze(-1) * excess.unsqueeze(1)).mean(-1)
    profile = n * ((-theta / shape).log() - shape - 1)
    theta = (theta * profile.softmax(-1)).sum(-1)
    k = torch.log1p(-theta.unsqueeze(-1) * excess).mean(-1)
    sigma = -k / theta
    return (n * k + 5) / (n + 10), sigma


def tail_length(count: int) -> int:
    """How many of `count` weights form the tail: min(count / 5, 3 sqrt(count)), rounded up."""
    return math.ceil(min(0.2 * count, 3 * math.sqrt(count)))


def psis(log_weights: Tensor, dim: int = 0) -> SmoothedWeights:
    """Pareto-smoothed importance weights.

    The largest min(n/5, 3 sqrt(n)) weights are replaced by expected order statistics of a generalised
    Pareto distribution fitted to them, cut at the largest raw weight, and all are normalised.

    Args:
        log_weights: any shape, floating point; -inf is weight zero.
        dim: the dim of the n draws.

    Returns:
        `SmoothedWeights(log_weights, pareto_k)` in the dtype of the input; computed in float64. With
        fewer than five tail weights nothing is smoothed and k is inf. When the tail is flat (equal
        weights, as of an exact proposal) nothing is smoothed and k is -inf. All -inf, +inf or NaN
        among the draws: NaN.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: there are no draws.
    """
    if not isinstance(log_weights, Tensor) or not log_weights.is_floating_point():
        raise TypeError(f"psis: log_weights must be a floating-point tensor, got {_kind(log_weights)}")
    rows = log_weights.movedim(dim, -1) if log_weights.dim() else log_weights.reshape(1)
    if rows.shape[-1] == 0:
        raise ValueError(f"psis: no draws along dim {dim} of shape {tuple(log_weights.shape)}")
    flat = rows.detach().double().reshape(-1, rows.shape[-1])
    tail = tail_length(flat.shape[-1])
    rows_per_block = max(1, _BLOCK // (max(1, tail) * (31 + int(math.sqrt(tail))) + flat.shape[-1]))
    blocks = [_smooth(block, tail) for block in flat.split(rows_per_block)]
    smoothed = torch.cat([weights for weights, _ in blocks]) if blocks else flat
    k = torch.cat([shape for _, shape in blocks]) if blocks else flat.sum(-1)
    smoothed = smoothed.reshape(rows.shape).movedim(-1, dim) if log_weights.dim() else smoothed.reshape(())
    return SmoothedWeights(smoothed.to(log_weights.dtype), k.reshape(rows.shape[:-1]).to(log_weights.dtype))


def _smooth(rows: Tensor, tail: int) -> tuple[Tensor, Tensor]:
    """Smoothed log-weights (batch, n) and shapes k (batch,)."""
    rows = rows - rows.amax(-1, keepdim=True)  # NaN where the maximum is infinite
    k = torch.full_like(rows[:, 0], torch.inf)
    if tail < _SMALLEST_TAIL:
        return rows.log_softmax(-1), torch.where(rows.isnan().any(-1), torch.nan, k)
    largest, positions = rows.topk(tail + 1, dim=-1)
    regular = (largest[:, -2] > largest[:, -1]) & (largest[:, -1] > _LOG_TINY)
    if bool(regular.any()):
        k[regular], rows = _replace(rows, regular.nonzero()[:, 0], largest[regular], positions[regular])
    # Ties at the cut, weights of zero in the tail, NaN: one by one, since the tails differ in length.
    for i in (~regular).nonzero()[:, 0].tolist():
        above = int((largest[i] > largest[i, -1].clamp(min=_LOG_TINY)).sum())
        chosen = torch.tensor([i], device=rows.device)
        if bool(rows[i].isnan().any()):
            k[i] = torch.nan
        elif above == 0:
            k[i] = -torch.inf
        elif above >= _SMALLEST_TAIL:
            cut = largest[i, -1:].clamp(min=_LOG_TINY)
            part = torch.cat([largest[i, :above], cut]).unsqueeze(0)
            k[i : i + 1], rows = _replace(rows, chosen, part, positions[i : i + 1, : above + 1])
    return rows.log_softmax(-1), k


def _replace(rows: Tensor, chosen: Tensor, largest: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes k of the chosen rows, and all rows with the chosen ones' tails smoothed.

    `largest` (chosen, tail + 1), descending, ends with the cut; `positions` says where they were.
    """
    tail = largest.shape[-1] - 1
    cut = largest[:, -1:].exp()
    k, sigma = _fit((largest[:, :-1].exp() - cut).flip(-1))
    rank = (torch.arange(tail, 0, -1, dtype=rows.dtype, device=rows.device) - 0.5) / tail
    shape = torch.where(k == 0, torch.finfo(rows.dtype).eps, k).unsqueeze(-1)
    expected = sigma.unsqueeze(-1) * torch.expm1(-shape * torch.log1p(-rank)) / shape
    smoothed = (expected + cut).log().clamp(max=0)
    rows = rows.clone()
    rows[chosen] = rows[chosen].scatter(-1, positions[:, :-1], smoothed)
    return k, rows


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
