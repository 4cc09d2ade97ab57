"""Statistics of samples: chain diagnostics, quantiles and intervals, predictive scores.

All functions work on the device and in the floating-point dtype of their input (half precision in
float32) and take any dim; entries along the other dims are independent problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sumprod.ops._chain_stats import (
    autocorrelation,
    autocovariance,
    effective_sample_size,
    floating,
    gelman_rubin,
    split_gelman_rubin,
)
from sumprod.ops._pareto import SmoothedWeights, fit_generalized_pareto, psis

__all__ = [
    "SmoothedWeights",
    "autocorrelation",
    "autocovariance",
    "crps_empirical",
    "effective_sample_size",
    "energy_score_empirical",
    "fit_generalized_pareto",
    "gelman_rubin",
    "hpdi",
    "pi",
    "psis",
    "quantile",
    "resample",
    "split_gelman_rubin",
    "waic",
    "weighed_quantile",
]

Probs = float | Sequence[float] | Tensor


def resample(input: Tensor, num_samples: int, dim: int = 0, replacement: bool = False) -> Tensor:
    """`num_samples` slices of the input along `dim`, picked at random with equal probability.

    Draws from torch's default generator of the input's device.

    Raises:
        ValueError: more slices than there are, without replacement; or there are none.
    """
    count = input.shape[dim]
    if num_samples < 0 or (num_samples > count and not replacement) or (num_samples > 0 and count == 0):
        raise ValueError(
            f"resample: cannot take {num_samples} of {count} slices along dim {dim}"
            f" {'with' if replacement else 'without'} replacement"
        )
    if num_samples == 0:
        return input.narrow(dim, 0, 0)
    weights = torch.ones(count, device=input.device)
    return input.index_select(dim, weights.multinomial(num_samples, replacement))


def _checked_probs(function: str, probs: Probs, like: Tensor) -> Tensor:
    probs = torch.as_tensor(probs, dtype=like.dtype, device=like.device)
    if probs.dim() > 1:
        raise ValueError(f"{function}: probs must be a number or 1-d, got shape {tuple(probs.shape)}")
    if not torch.compiler.is_compiling() and not bool(((probs >= 0) & (probs <= 1)).all()):
        raise ValueError(f"{function}: probs must be in [0, 1], got {probs.tolist()}")
    return probs


def _sortable(function: str, input: Tensor, dim: int) -> Tensor:
    """In floating point; not empty along `dim`."""
    if isinstance(input, Tensor) and not input.is_floating_point() and not input.is_complex():
        input = input.to(torch.get_default_dtype())
    input = floating(function, input)
    if input.shape[dim] == 0:
        raise ValueError(f"{function}: no samples along dim {dim} of shape {tuple(input.shape)}")
    return input


def _interpolate(low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    # Apart where both are equal: infinity minus infinity is NaN.
    return torch.where(low == high, low, low + fraction * (high - low))


def quantile(input: Tensor, probs: Probs, dim: int = 0) -> Tensor:
    """Sample quantiles, linearly interpolated between order statistics (type 7 of Hyndman and Fan 1996).

    Args:
        input: any shape; integers are converted to the default dtype.
        probs: numbers in [0, 1]: one number, or a list, tuple or 1-d tensor of k.

    Returns:
        The shape of the input, with `dim` of size k, or without it for a single number.

    Raises:
        ValueError: a prob outside [0, 1], or no samples.

    Example:
        >>> import torch
        >>> quantile(torch.tensor([1.0, 3.0, 2.0, 5.0]), [0.0, 0.5]).tolist()
        [1.0, 2.5]
    """
    input = _sortable("quantile", input, dim)
    points = _checked_probs("quantile", probs, input)
    ordered = input.sort(dim).values.movedim(dim, -1)
    position = points * (ordered.shape[-1] - 1)
    below = position.floor()
    low = ordered[..., below.long()]
    high = ordered[..., position.ceil().long()]
    result = _interpolate(low, high, position - below)
    return result.movedim(-1, dim) if points.dim() else result


def weighed_quantile(input: Tensor, probs: Probs, log_weights: Tensor, dim: int = 0) -> Tensor:
    """Quantiles of weighted samples, linearly interpolated; of equal weights, those of `quantile`.

    With c_i the normalised weight of the samples up to and including the i-th smallest, that sample
    is at level (c_i - c_1) / (1 - c_1). Samples of weight zero are left out.

    Args:
        input: any shape; integers are converted to the default dtype.
        probs: as in `quantile`.
        log_weights: shape (size of dim,), not necessarily normalised.

    Returns:
        As `quantile`.

    Raises:
        ValueError: a prob outside [0, 1], no sample of positive weight, NaN or +inf weights, or
            weights of another shape.
    """
    input = _sortable("weighed_quantile", input, dim)
    points = _checked_probs("weighed_quantile", probs, input)
    weights = _checked_weights("weighed_quantile", input, log_weights, dim)
    possible = weights > -torch.inf
    if not bool(possible.all()):
        kept = possible.nonzero()[:, 0]
        input, weights = input.index_select(dim, kept), weights[kept]
    ordered, order = input.movedim(dim, -1).sort(-1)
    share = weights.softmax(0)[order]
    rise = share[..., 1:].cumsum(-1)  # c_i - c_1
    level = (
        torch.cat([torch.zeros_like(share[..., :1]), rise / rise[..., -1:]], -1)
        if len(weights) > 1
        else 0 * share
    )
    at = points.reshape(-1).to(level.dtype).expand(*level.shape[:-1], -1).contiguous()
    above = torch.searchsorted(level.contiguous(), at).clamp(max=level.shape[-1] - 1)
    below = (above - 1).clamp(min=0)
    start, end = level.gather(-1, below), level.gather(-1, above)
    fraction = torch.where(end > start, (at - start) / (end - start), 1.0).to(ordered.dtype)
    result = _interpolate(ordered.gather(-1, below), ordered.gather(-1, above), fraction)
    return result.movedim(-1, dim) if points.dim() else result[..., 0]


def _checked_weights(function: str, input: Tensor, log_weights: Tensor, dim: int) -> Tensor:
    """The log-weights in float64; at least one is finite."""
    if log_weights.shape != (input.shape[dim],):
        raise ValueError(
            f"{function}: log_weights must have shape ({input.shape[dim]},), one for each sample along dim"
            f" {dim}; got {tuple(log_weights.shape)}"
        )
    weights = log_weights.to(dtype=torch.float64, device=input.device)
    largest = weights.max()
    if not bool(largest.isfinite()):
        reason = (
            "all samples have weight zero"
            if bool(largest == -torch.inf)
            else f"the largest is {largest.item()}"
        )
        raise ValueError(f"{function}: log_weights must have a finite maximum: {reason}")
    return weights


def pi(input: Tensor, prob: float, dim: int = 0) -> Tensor:
    """The central interval that holds `prob` of the samples: both tails have (1 - prob) / 2.

    Returns:
        The shape of the input with `dim` of size 2: lower and upper end.

    Raises:
        ValueError: `prob` is outside [0, 1], or there are no samples.
    """
    return quantile(input, [(1 - prob) / 2, (1 + prob) / 2], dim)


def hpdi(input: Tensor, prob: float, dim: int = 0) -> Tensor:
    """The shortest interval between two samples that spans `prob` of them (highest posterior density).

    Returns:
        The shape of the input with `dim` of size 2: lower and upper end; the lowest of equally short
        intervals.

    Raises:
        ValueError: `prob` is outside [0, 1], or there are no samples.
    """
    input = _sortable("hpdi", input, dim)
    if not 0 <= prob <= 1:
        raise ValueError(f"hpdi: prob must be in [0, 1], got {prob}")
    ordered = input.sort(dim).values
    count = ordered.shape[dim]
    span = min(int(prob * count), count - 1)
    length = ordered.narrow(dim, span, count - span) - ordered.narrow(dim, 0, count - span)
    start = length.argmin(dim, keepdim=True)
    return torch.cat([ordered.gather(dim, start), ordered.gather(dim, start + span)], dim)


def waic(
    input: Tensor, log_weights: Tensor | None = None, pointwise: bool = False, dim: int = 0
) -> tuple[Tensor, Tensor]:
    """The widely applicable information criterion -2 (lpd - p) and the effective number of parameters p.

    For each data point, lpd is the log of the mean of its density over posterior samples and p the
    variance of its log-density (Watanabe 2010; equations 7.5 and 7.12 in "Bayesian Data Analysis").

    Args:
        input: log-densities of the data points, with samples along `dim`.
        log_weights: shape (samples,), not necessarily normalised; equal weights by default. The
            variance then has the factor n / (n - 1), as with equal weights.
        pointwise: one value per data point instead of their sums.

    Returns:
        `(waic, p_waic)`, scalars, or of the shape of the input without `dim`. A data point that is
        impossible (-inf) under some samples has p = inf; under samples of weight zero it does not matter.

    Raises:
        TypeError: not floating point.
        ValueError: fewer than two samples, or wrong weights.
    """
    input = floating("waic", input)
    count = input.shape[dim]
    if count < 2:
        raise ValueError(f"waic: needs at least 2 samples along dim {dim}, got {count}")
    density = input.movedim(dim, 0).double()
    if log_weights is None:
        share = torch.full((count,), 1 / count, dtype=torch.float64, device=input.device)
    else:
        share = _checked_weights("waic", input, log_weights, dim).softmax(0)
        if not bool(share.all()):
            density, share = density[share > 0], share[share > 0]
    share = share.reshape(-1, *[1] * (density.dim() - 1))
    lpd = (density + share.log()).logsumexp(0)
    possible = (density > -torch.inf).all(0)
    finite = torch.where(possible, density, 0.0)
    spread = (share * (finite - (share * finite).sum(0)).square()).sum(0) * (count / (count - 1))
    p_waic = torch.where(possible, spread, torch.inf)
    deviance = -2 * (lpd - p_waic)
    if not pointwise:
        deviance, p_waic = deviance.sum(), p_waic.sum()
    return deviance.to(input.dtype), p_waic.to(input.dtype)


def crps_empirical(pred: Tensor, truth: Tensor) -> Tensor:
    """The continuous ranked probability score E|X - truth| - E|X - X'| / 2 of sampled predictions.

    X and X' range over all pairs of samples, equal ones included (Gneiting and Raftery 2007,
    section 4.2). Takes n log n steps.

    Args:
        pred: shape (n, ...), samples along the leftmost dim.
        truth: shape (...).

    Returns:
        Shape (...); smaller is better, 0 when all samples equal the truth.

    Raises:
        ValueError: the shapes do not match.
    """
    if pred.shape[1:] != truth.shape or pred.dim() == 0 or pred.shape[0] == 0:
        raise ValueError(
            "crps_empirical: Expected pred to have one extra sample dim on left. Actual shapes:"
            f" pred {tuple(pred.shape)} versus truth {tuple(truth.shape)}"
        )
    count = pred.shape[0]
    error = (pred - truth).abs().mean(0)
    if count == 1:
        return error
    gaps = pred.sort(0).values.diff(dim=0)
    rank = torch.arange(1, count, dtype=pred.dtype, device=pred.device)
    pairs = (rank * (count - rank)).reshape(-1, *[1] * truth.dim())
    return error - (gaps * pairs).sum(0) / count**2


def energy_score_empirical(
    pred: Tensor,
    truth: Tensor,
    pred_batch_size: int | None = None,
    cdist: Callable[[Tensor, Tensor], Tensor] = torch.cdist,
) -> Tensor:
    """The energy score E|X - truth| - E|X - X'| / 2 of sampled predictions of vectors.

    X and X' range over all pairs of samples, equal ones included (Gneiting and Raftery 2007,
    section 4.3).

    Args:
        pred: shape (..., n, d): n samples of a vector of length d.
        truth: shape (..., d); or (..., m, d), m vectors to score with the same samples.
        pred_batch_size: compare only so many samples at a time with the others; bounds memory.
        cdist: distances between the rows of two matrices.

    Returns:
        Shape (...), or (..., m).

    Raises:
        ValueError: the shapes do not match, or `pred_batch_size` is not positive.
    """
    one = pred.dim() == truth.dim() + 1
    if not (one or pred.dim() == truth.dim() > 1) or pred.shape[-1:] != truth.shape[-1:]:
        raise ValueError(
            "energy_score_empirical: Expected pred to have at most one extra dim versus truth, the second"
            f" from right. Actual shapes: pred {tuple(pred.shape)} versus truth {tuple(truth.shape)}"
        )
    rows = truth.unsqueeze(-2) if one else truth
    if pred.shape[:-2] != rows.shape[:-2] or pred.shape[-2] == 0:
        raise ValueError(
            "energy_score_empirical: pred and truth must have equal batch dims, and pred at least one"
            f" sample. Actual shapes: pred {tuple(pred.shape)} versus truth {tuple(truth.shape)}"
        )
    count = pred.shape[-2]
    block = count if pred_batch_size is None else pred_batch_size
    if block < 1:
        raise ValueError(f"energy_score_empirical: pred_batch_size must be positive, got {block}")
    error = cdist(pred, rows).mean(-2)
    spread = torch.stack([cdist(part, pred).sum((-1, -2)) for part in pred.split(block, dim=-2)]).sum(0)
    score = error - spread.unsqueeze(-1) / (2 * count**2)
    return score[..., 0] if one else score
