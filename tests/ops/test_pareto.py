"""Generalised Pareto fits and Pareto-smoothed weights, against Pyro, SciPy and the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyro.ops import stats as peer
from scipy import stats as scipy_stats

from sumprod.ops import stats
from tests.ops.test_stats import DTYPES, close

INF = math.inf


@pytest.mark.host("the peer mixes devices")
@DTYPES
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 10, 100])
def test_fit_generalized_pareto_equals_pyro(count: int, dtype: torch.dtype) -> None:
    x = torch.rand(count, dtype=dtype).neg().log1p().neg()
    actual, expected = stats.fit_generalized_pareto(x), peer.fit_generalized_pareto(x)
    assert all(isinstance(number, float) for number in actual)
    assert actual == pytest.approx(expected, rel=1e-9)
    assert stats.fit_generalized_pareto(x.flip(0)) == pytest.approx(actual, rel=1e-12)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.2])
def test_fit_generalized_pareto_recovers_the_shape(k: float) -> None:
    # At 4000 quantiles instead of draws the estimate has no noise, only its small bias.
    x = torch.from_numpy(scipy_stats.genpareto(k, scale=2.0).ppf((np.arange(4000) + 0.5) / 4000))
    shape, sigma = stats.fit_generalized_pareto(x)
    assert shape == pytest.approx(k, abs=0.02)
    assert sigma == pytest.approx(2.0, rel=0.03)


def test_fit_generalized_pareto_wants_one_dim() -> None:
    with pytest.raises(ValueError, match="Input X must be a 1-dimensional torch tensor"):
        stats.fit_generalized_pareto(torch.rand(3, 4))
    with pytest.raises(ValueError, match="not empty"):
        stats.fit_generalized_pareto(torch.empty(0))


def psis_by_definition(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """One vector, step by step as in the paper, with SciPy's quantiles."""
    weights = np.exp(log_weights - log_weights.max())
    tail = math.ceil(min(0.2 * len(weights), 3 * math.sqrt(len(weights))))
    order = np.argsort(weights)
    cut = weights[order[-tail - 1]]
    k, sigma = peer.fit_generalized_pareto(torch.from_numpy(weights[order[-tail:]] - cut))
    quantiles = cut + scipy_stats.genpareto(k, scale=sigma).ppf((np.arange(tail) + 0.5) / tail)
    weights[order[-tail:]] = np.minimum(quantiles, 1.0)
    return np.log(weights / weights.sum()), k


@pytest.mark.host("the peer mixes devices")
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_psis_by_definition(spread: float) -> None:
    x = spread * torch.randn(2, 300, 2, dtype=torch.float64)
    smoothed = stats.psis(x, dim=1)
    for i in range(2):
        for j in range(2):
            weights, k = psis_by_definition(x[i, :, j].numpy())
            close(smoothed.log_weights[i, :, j], torch.from_numpy(weights))
            close(smoothed.pareto_k[i, j], k, scale=10)
    single = stats.psis(x[0, :, 1].float())
    close(single.log_weights, smoothed.log_weights[0, :, 1], scale=10)


def test_psis_edges() -> None:
    # Weights of an exact proposal: nothing to smooth.
    flat = stats.psis(torch.full((50,), -3.0))
    close(flat.log_weights, torch.full((50,), -math.log(50)))
    assert flat.pareto_k == -INF
    # Too few weights for a fit.
    few = stats.psis(torch.tensor([0.0, 1.0, 2.0]))
    close(few.log_weights, torch.tensor([0.0, 1.0, 2.0]).log_softmax(0))
    assert few.pareto_k == INF
    assert stats.psis(torch.tensor(2.0)).log_weights == 0
    # Weight zero stays zero, also where the tail has fewer positive weights than it has places.
    sparse = torch.full((200,), -INF, dtype=torch.float64)
    sparse[::10] = torch.randn(20, dtype=torch.float64)
    result = stats.psis(sparse)
    assert torch.equal(result.log_weights == -INF, sparse == -INF)
    close(result.log_weights.logsumexp(0), 0.0)
    assert result.pareto_k.isfinite()
    # Nothing possible, or not a number: NaN, in that row only.
    rows = torch.stack([torch.randn(100), torch.full((100,), -INF), torch.full((100,), math.nan)])
    result = stats.psis(rows, dim=1)
    assert result.pareto_k.isnan().tolist() == [False, True, True]
    close(result.log_weights[0], stats.psis(rows[0]).log_weights)
    assert stats.psis(torch.empty(10, 0)).pareto_k.shape == (0,)


def test_psis_of_ties_is_that_of_the_weights_above_the_cut() -> None:
    x = torch.cat([torch.zeros(90), torch.linspace(1, 2, 10)]).double()  # a tail of 20, of which 10 tie
    smoothed = stats.psis(x)
    k, _ = stats.fit_generalized_pareto((x[90:] - 2).exp() - math.exp(-2))
    close(smoothed.pareto_k, k)
    assert torch.equal(smoothed.log_weights[:90].unique(), smoothed.log_weights[:1])


def test_psis_says_what_is_wrong() -> None:
    with pytest.raises(
        TypeError, match=r"psis: log_weights must be a floating-point tensor, got torch.int64"
    ):
        stats.psis(torch.arange(3))
    with pytest.raises(ValueError, match="no draws along dim 0"):
        stats.psis(torch.empty(0, 3))
