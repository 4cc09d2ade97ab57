"""Diagnostics of Markov chains: convergence between chains and autocorrelation within them.

Source: Gelman et al., "Bayesian Data Analysis", 3rd edition, sections 11.4 and 11.5; Geyer, "Practical
Markov chain Monte Carlo", Statistical Science 7 (1992) for where the autocorrelations are cut off.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "autocorrelation",
    "autocovariance",
    "effective_sample_size",
    "floating",
    "gelman_rubin",
    "split_gelman_rubin",
]


def floating(function: str, input: Tensor) -> Tensor:
    """The input in a dtype to compute in: half precision becomes float32.

    Raises:
        TypeError: not a tensor of floating-point numbers.
    """
    if not isinstance(input, Tensor) or not input.is_floating_point():
        found = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(
            f"{function}: input must be a floating-point tensor, got {found}; convert with .float()"
        )
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def _chains_first(function: str, input: Tensor, chain_dim: int, sample_dim: int) -> Tensor:
    """Shape (chains, samples, ...)."""
    input = floating(function, input)
    if input.dim() < 2:
        raise ValueError(
            f"{function}: input needs a chain dim and a sample dim, got shape {tuple(input.shape)};"
            " for a single chain add one with .unsqueeze(0)"
        )
    dims = tuple(
        dim % input.dim() if -input.dim() <= dim < input.dim() else dim for dim in (chain_dim, sample_dim)
    )
    if dims[0] == dims[1]:
        raise ValueError(
            f"{function}: chain_dim and sample_dim are the same dim, {chain_dim} and {sample_dim}"
        )
    return input.movedim(dims, (0, 1))


def _require_samples(function: str, input: Tensor, least: int) -> None:
    if input.shape[1] < least:
        raise ValueError(f"{function}: needs at least {least} samples per chain, got {input.shape[1]}")


def _variances(chains: Tensor) -> tuple[Tensor, Tensor]:
    """Mean variance within a chain, and the pooled estimate of the posterior variance."""
    count = chains.shape[1]
    if chains.shape[0] == 1:
        variance = chains.var(dim=1, correction=0)[0]
        return variance, variance
    within = chains.var(dim=1).mean(dim=0)
    return within, within * ((count - 1) / count) + chains.mean(dim=1).var(dim=0)


def gelman_rubin(input: Tensor, chain_dim: int = 0, sample_dim: int = 1) -> Tensor:
    """The potential scale reduction R-hat of several chains; near 1 when they agree.

    Args:
        input: shape (chains, samples, ...) or with these dims elsewhere; floating point.

    Returns:
        The shape of the input without the two dims. Chains that are all constant and equal give NaN.

    Raises:
        TypeError: not floating point.
        ValueError: fewer than two chains or two samples.
    """
    chains = _chains_first("gelman_rubin", input, chain_dim, sample_dim)
    _require_samples("gelman_rubin", chains, 2)
    if chains.shape[0] < 2:
        raise ValueError(
            f"gelman_rubin: needs at least 2 chains along dim {chain_dim}, got {chains.shape[0]};"
            " split_gelman_rubin works with one"
        )
    return _reduction(chains)


def split_gelman_rubin(input: Tensor, chain_dim: int = 0, sample_dim: int = 1) -> Tensor:
    """R-hat with each chain cut into halves, which also shows a drift within a chain.

    Arguments and result as of `gelman_rubin`; one chain is enough. An odd middle sample is left out.

    Raises:
        TypeError: not floating point.
        ValueError: fewer than four samples per chain.
    """
    chains = _chains_first("split_gelman_rubin", input, chain_dim, sample_dim)
    _require_samples("split_gelman_rubin", chains, 4)
    half = chains.shape[1] // 2
    return _reduction(torch.cat([chains[:, :half], chains[:, -half:]]))


def _reduction(chains: Tensor) -> Tensor:
    within, pooled = _variances(chains)
    return (pooled / within).sqrt()


def autocovariance(input: Tensor, dim: int = 0) -> Tensor:
    """Covariances of a series with itself at lags 0, 1, ..., n - 1 along `dim`.

    The sum of n - lag products is divided by n - lag. Computed by a fast Fourier transform.

    Args:
        input: any shape; floating point.

    Returns:
        The shape of the input; entry t along `dim` is for lag t.

    Raises:
        TypeError: not floating point.
        ValueError: `dim` is empty.
    """
    input = floating("autocovariance", input)
    series = input.movedim(dim, -1)
    count = series.shape[-1]
    if count == 0:
        raise ValueError(f"autocovariance: no samples along dim {dim} of shape {tuple(input.shape)}")
    centred = series - series.mean(-1, keepdim=True)
    # Padded so that the circular products do not wrap round.
    padded = _fast_length(2 * count)
    spectrum = torch.fft.rfft(centred, n=padded)
    power = spectrum.real.square() + spectrum.imag.square()
    products: Tensor = torch.fft.irfft(power, n=padded)[..., :count]
    terms = torch.arange(count, 0, -1, dtype=series.dtype, device=series.device)
    return (products / terms).movedim(-1, dim)


def _fast_length(least: int) -> int:
    """The smallest number >= `least` without prime factors above 5, for which the transform is fast."""
    length = least
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def autocorrelation(input: Tensor, dim: int = 0) -> Tensor:
    """`autocovariance` divided by its value at lag 0; all 1 for a constant series.

    Raises:
        TypeError: not floating point.
        ValueError: `dim` is empty.
    """
    covariance = autocovariance(input, dim)
    variance = covariance.narrow(dim, 0, 1)
    return torch.where(variance == 0, torch.ones_like(covariance), covariance / variance)


def effective_sample_size(input: Tensor, chain_dim: int = 0, sample_dim: int = 1) -> Tensor:
    """How many independent draws tell as much about the mean as these correlated ones.

    Autocorrelations, pooled over chains, are summed in pairs until a pair is negative, and no pair
    counts for more than the one before it (Geyer 1992). Anticorrelated chains give more than the number
    of draws.

    Args:
        input: shape (chains, samples, ...) or with these dims elsewhere; floating point.

    Returns:
        The shape of the input without the two dims. NaN for constant chains, and for chains so short that
        the estimated autocorrelation time is not positive.

    Raises:
        TypeError: not floating point.
        ValueError: fewer than two samples per chain.
    """
    chains = _chains_first("effective_sample_size", input, chain_dim, sample_dim)
    _require_samples("effective_sample_size", chains, 2)
    count = chains.shape[1]
    within, pooled = _variances(chains)
    rho = (pooled - within + autocovariance(chains, 1).mean(0)) / pooled
    rho[0] = 1
    pairs = rho[: count // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    if pairs.shape[0] > 1:
        pairs = torch.cat([pairs[:1], pairs[1:].clamp(min=0)])
    time = 2 * pairs.cummin(0).values.sum(0) - 1
    return chains.shape[0] * count / torch.where(time > 0, time, torch.nan)
