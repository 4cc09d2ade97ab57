"""Float64 oracles of the operators that are one reduction: the defining formula, one output at a time."""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.model import Floats, Ints


def log_sum_exp_row(row: Floats) -> float:
    """Log sum exp of one row: NaN if any is NaN, +inf if any is +inf, -inf if empty or all -inf."""
    values = [float(value) for value in row]
    if any(math.isnan(value) for value in values):
        return math.nan
    top = max(values, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(value - top) for value in values))


def logsumexp(values: Floats, dim: int | tuple[int, ...], keepdim: bool = False) -> Floats:
    """Log sum exp over the dims in `dim`."""
    dims = (dim,) if isinstance(dim, int) else dim
    dims = tuple(sorted(d % max(values.ndim, 1) for d in dims)) if values.ndim else ()
    kept = [d for d in range(values.ndim) if d not in dims]
    count = math.prod(values.shape[d] for d in kept)
    width = math.prod(values.shape[d] for d in dims)
    rows = values.transpose(*kept, *dims).reshape(count, width)
    out = np.array([log_sum_exp_row(row) for row in rows]).reshape([values.shape[d] for d in kept])
    return np.expand_dims(out, dims) if keepdim else out


def logmatmulexp(x: Floats, y: Floats) -> Floats:
    """out[..., i, k] = log sum_j exp(x[..., i, j] + y[..., j, k]), batch dims broadcast."""
    return logsumexp(x[..., :, :, None] + y[..., None, :, :], -2)


def maxmatmul(x: Floats, y: Floats) -> tuple[Floats, Ints]:
    """Max over j of x[..., i, j] + y[..., j, k], and the lowest j that reaches it."""
    sums = x[..., :, :, None] + y[..., None, :, :]
    return sums.max(-2), sums.argmax(-2)


def normalize_weights_row(row: Floats) -> tuple[Floats, float, float]:
    """(normalised log weights, log of the mean raw weight, effective sample size) of one row of log weights.

    +inf entries share the weight equally; no weight at all gives -inf, -inf, 0.
    """
    total = log_sum_exp_row(row)
    if total == math.inf:
        chosen = np.isposinf(row)
        weights = np.where(chosen, -math.log(chosen.sum()), -math.inf)
        return weights, math.inf, float(chosen.sum())
    if total == -math.inf:
        return np.full(row.shape, -math.inf), -math.inf, 0.0
    weights = row - total
    return weights, total - math.log(len(row)), math.exp(-log_sum_exp_row(2 * weights))


def normalize_weights(values: Floats, dim: int = -1) -> tuple[Floats, Floats, Floats]:
    """normalize_weights_row along `dim` of an array."""
    moved = np.moveaxis(values, dim, -1)
    flat = moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])
    rows = [normalize_weights_row(row) for row in flat]
    weights = np.array([row[0] for row in rows]).reshape(moved.shape)
    evidence = np.array([row[1] for row in rows]).reshape(moved.shape[:-1])
    ess = np.array([row[2] for row in rows]).reshape(moved.shape[:-1])
    return np.moveaxis(weights, -1, dim), evidence, ess
