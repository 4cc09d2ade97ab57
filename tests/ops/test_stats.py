"""Statistics of samples: equal to Pyro's where Pyro is right, to direct computations, and exact cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyro.ops import stats as peer
from torch import Tensor

from sumprod.ops import stats

INF = math.inf
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def close(actual: Tensor, expected: Tensor | list[float] | float, scale: float = 1.0) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    tolerance = scale * (2e-5 if actual.dtype == torch.float32 else 1e-11)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def chains(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, sample_dim: int = 1) -> Tensor:
    """White noise plus a random walk along `sample_dim`: autocorrelated, and chains that disagree."""
    noise = torch.randn(shape, dtype=torch.float64)
    return (noise + 0.2 * torch.randn(shape, dtype=torch.float64).cumsum(sample_dim)).to(dtype)


# ---- chain diagnostics


@DTYPES
@pytest.mark.parametrize("shape", [(4, 100, 3), (2, 5), (3, 64, 2, 2), (5, 1001)])
def test_gelman_rubin_equals_pyro(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = chains(shape, dtype)
    close(stats.gelman_rubin(x), peer.gelman_rubin(x))
    close(stats.split_gelman_rubin(x), peer.split_gelman_rubin(x))
    close(stats.split_gelman_rubin(x[:1]), peer.split_gelman_rubin(x[:1]))


@DTYPES
@pytest.mark.parametrize("shape", [(4, 100, 3), (1, 200), (1, 51, 2), (3, 64, 2, 2)])
def test_effective_sample_size_equals_pyro(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = chains(shape, dtype)
    close(stats.effective_sample_size(x), peer.effective_sample_size(x), scale=10)


def test_chain_diagnostics_take_any_dims() -> None:
    x = chains((4, 30, 3))
    moved = x.permute(2, 1, 0)
    for function in (stats.gelman_rubin, stats.split_gelman_rubin, stats.effective_sample_size):
        expected = function(x)
        close(function(moved, chain_dim=2, sample_dim=1), expected)
        close(function(moved, -1, -2), expected)


def test_gelman_rubin_by_hand() -> None:
    # Within: variances 1 and 1. Means 2 and 4, so between: 2. Pooled: 2/3 + 2.
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
    close(stats.gelman_rubin(x), math.sqrt(8 / 3))


def test_effective_sample_size_of_an_autoregression() -> None:
    # x_t = a x_(t-1) + noise has autocorrelation time (1 + a) / (1 - a) = 3 at a = 1/2. The estimate has
    # a standard error of about 6% here; 25% off would be four of them.
    noise = torch.randn(8, 4000, dtype=torch.float64)
    x = torch.empty_like(noise)
    x[:, 0] = noise[:, 0] / math.sqrt(0.75)
    for t in range(1, x.shape[1]):
        x[:, t] = 0.5 * x[:, t - 1] + noise[:, t]
    assert abs(stats.effective_sample_size(x).item() / (x.numel() / 3) - 1) < 0.25


def test_effective_sample_size_is_nan_rather_than_negative() -> None:
    x = torch.tensor([[0.0, 1.0]])
    assert peer.effective_sample_size(x) < 0
    assert stats.effective_sample_size(x).isnan()
    assert stats.effective_sample_size(torch.ones(2, 6)).isnan()


@DTYPES
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_autocorrelation_equals_pyro(dim: int, dtype: torch.dtype) -> None:
    x = chains((6, 7, 50), dtype, sample_dim=2)
    close(stats.autocovariance(x, dim), peer.autocovariance(x, dim), scale=10)
    close(stats.autocorrelation(x, dim), peer.autocorrelation(x, dim), scale=30)


@pytest.mark.parametrize("count", [1, 2, 7, 97])
def test_autocovariance_by_definition(count: int) -> None:
    x = torch.randn(count, dtype=torch.float64)
    centred = x - x.mean()
    expected = [(centred[lag:] * centred[: count - lag]).mean().item() for lag in range(count)]
    close(stats.autocovariance(x), expected)


def test_constant_series_has_autocorrelation_one() -> None:
    assert torch.equal(stats.autocorrelation(torch.full((5,), 0.5)), torch.ones(5))


def test_half_precision_is_computed_in_single() -> None:
    x = chains((2, 50)).half()
    assert stats.effective_sample_size(x).dtype == torch.float32
    close(stats.autocovariance(x, 1), stats.autocovariance(x.float(), 1))


def test_chain_diagnostics_say_what_is_wrong() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"needs at least 2 chains along dim 0, got 1"):
        stats.gelman_rubin(x[:1])
    with pytest.raises(ValueError, match=r"split_gelman_rubin: needs at least 4 samples per chain, got 3"):
        stats.split_gelman_rubin(x)
    with pytest.raises(ValueError, match=r"effective_sample_size: needs at least 2 samples per chain, got 1"):
        stats.effective_sample_size(x[:, :1])
    with pytest.raises(ValueError, match=r"needs a chain dim and a sample dim, got shape \(2,\)"):
        stats.gelman_rubin(x[:, 0])
    with pytest.raises(ValueError, match="are the same dim"):
        stats.gelman_rubin(x, 0, -2)
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        stats.autocovariance(torch.arange(3))
    with pytest.raises(TypeError, match="floating-point tensor, got list"):
        stats.autocovariance([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no samples along dim 0"):
        stats.autocorrelation(torch.empty(0))


# ---- resampling, quantiles, intervals


@pytest.mark.parametrize(("count", "replacement"), [(2, False), (5, False), (9, True)])
def test_resample_draws_what_pyro_draws(count: int, replacement: bool, seed: int) -> None:
    x = torch.randn(3, 5)
    torch.manual_seed(seed)
    actual = stats.resample(x, count, dim=1, replacement=replacement)
    torch.manual_seed(seed)
    assert torch.equal(actual, peer.resample(x, count, dim=1, replacement=replacement))


def test_resample_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="cannot take 4 of 3 slices along dim 0 without replacement"):
        stats.resample(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="cannot take 1 of 0 slices"):
        stats.resample(torch.zeros(0), 1, replacement=True)
    assert stats.resample(torch.zeros(3, 2), 0).shape == (0, 2)


@DTYPES
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize(
    "probs",
    [
        0.3,
        [0.0, 0.25, 0.9, 1.0],
        (0.5,),
        pytest.param(
            torch.tensor([0.125, 0.2], dtype=torch.float64), marks=pytest.mark.host("the peer mixes devices")
        ),
    ],
)
def test_quantile_equals_pyro_and_numpy(probs: object, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 8, 3, dtype=dtype)
    actual = stats.quantile(x, probs, dim)  # type: ignore[arg-type]
    close(actual, peer.quantile(x, probs, dim))
    expected = torch.as_tensor(np.quantile(x.double().numpy(), np.asarray(probs), axis=dim))
    close(actual, expected if actual.dim() < 3 else expected.movedim(0, dim))


def test_quantile_between_infinities() -> None:
    x = torch.tensor([-INF, -INF, 0.0, INF, INF])
    assert stats.quantile(x, [0.1, 0.5, 0.9]).tolist() == [-INF, 0.0, INF]
    assert stats.quantile(torch.tensor([1, 2, 3, 4]), 0.5) == 2.5


@DTYPES
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weighed_quantile_equals_pyro(dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 8, 3, dtype=dtype)
    weights = torch.randn(x.shape[dim], dtype=dtype)
    probs = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.99], dtype=dtype)
    actual = stats.weighed_quantile(x, probs, weights, dim)
    close(actual, peer.weighed_quantile(x, probs, weights, dim), scale=10)
    close(stats.weighed_quantile(x, 0.25, weights, dim), actual.select(dim, 2))


def test_weighed_quantile_of_equal_weights_is_quantile() -> None:
    x = torch.randn(9, 4, dtype=torch.float64)
    probs = [0.0, 0.1, 0.5, 0.77, 1.0]
    close(stats.weighed_quantile(x, probs, torch.full((9,), -700.0)), stats.quantile(x, probs))
    assert stats.weighed_quantile(torch.tensor([3.0]), [0.0, 0.4, 1.0], torch.zeros(1)).tolist() == [3.0] * 3


def test_weighed_quantile_leaves_out_weight_zero() -> None:
    # Pyro gives NaN at 1.0, and 1.0, a value of weight zero, at 0.0.
    x = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0])
    weights = torch.tensor([-INF, 0.0, 0.0, -INF, 0.0])
    assert stats.weighed_quantile(x, [0.0, 0.25, 0.5, 1.0], weights).tolist() == [2.0, 2.5, 3.0, 4.0]


def test_quantiles_say_what_is_wrong() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"probs must be in \[0, 1\], got"):
        stats.quantile(x, [1.5])
    with pytest.raises(ValueError, match=r"probs must be in \[0, 1\]"):
        stats.quantile(x, math.nan)
    with pytest.raises(ValueError, match="a number or 1-d"):
        stats.quantile(x, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="no samples along dim 0"):
        stats.quantile(x[:0], 0.5)
    with pytest.raises(ValueError, match=r"log_weights must have shape \(3,\).* along dim 0; got \(2,\)"):
        stats.weighed_quantile(x, 0.5, torch.zeros(2))
    with pytest.raises(ValueError, match="all samples have weight zero"):
        stats.weighed_quantile(x, 0.5, torch.full((3,), -INF))
    with pytest.raises(ValueError, match="the largest is nan"):
        stats.weighed_quantile(x, 0.5, torch.full((3,), math.nan))


@DTYPES
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("prob", [0.1, 0.5, 0.8])
def test_intervals_equal_pyro(prob: float, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 8, 7, dtype=dtype)
    close(stats.pi(x, prob, dim), peer.pi(x, prob, dim))
    close(stats.hpdi(x, prob, dim), peer.hpdi(x, prob, dim))


def test_intervals_by_hand() -> None:
    x = torch.tensor([5.0, 0.0, 1.0, 1.5, 9.0])
    assert stats.hpdi(x, 0.4).tolist() == [0.0, 1.5]
    assert stats.hpdi(x, 1.0).tolist() == [0.0, 9.0]  # Pyro: IndexError
    assert stats.pi(x, 0.5).tolist() == [1.0, 5.0]
    with pytest.raises(ValueError, match=r"hpdi: prob must be in \[0, 1\], got 1.5"):
        stats.hpdi(x, 1.5)


# ---- information criteria


@DTYPES
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_waic_equals_pyro(dim: int, weighted: bool, dtype: torch.dtype) -> None:
    x = torch.randn(6, 20, 4, dtype=dtype) - 3
    weights = torch.randn(x.shape[dim], dtype=dtype) if weighted else None
    for pointwise in (False, True):
        actual = stats.waic(x, weights, pointwise, dim)
        # Pyro broadcasts weights against the rightmost dims, so its `dim` must be the leftmost.
        expected = peer.waic(x.movedim(dim, 0), weights, pointwise, 0)
        close(actual[0], expected[0], scale=10)
        close(actual[1], expected[1], scale=10)
        assert actual[0].dtype == dtype


def test_waic_ignores_samples_of_weight_zero() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    weights = torch.tensor([0.3, -INF, 0.0, 0.1, -INF], dtype=torch.float64)
    spoilt = x.clone()
    spoilt[1], spoilt[4] = -INF, math.nan
    waic, p_waic = stats.waic(x, weights)
    assert stats.waic(spoilt, weights) == (waic, p_waic)
    share = weights.softmax(0)[:, None]
    mean = (share * x).sum(0)
    p = (share * (x - mean) ** 2).sum(0) * 5 / 4
    close(p_waic, p.sum().item())
    close(waic, -2 * ((share * x.exp()).sum(0).log() - p).sum().item())


def test_waic_of_an_impossible_point_is_infinite() -> None:
    waic, p_waic = stats.waic(torch.tensor([[0.0, -INF], [0.5, 1.0]]), pointwise=True)
    assert waic.isfinite().tolist() == [True, False]
    assert waic[1] == INF
    assert p_waic[1] == INF


def test_waic_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="waic: needs at least 2 samples along dim 0, got 1"):
        stats.waic(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"log_weights must have shape \(3,\)"):
        stats.waic(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(TypeError, match="floating-point"):
        stats.waic(torch.zeros(3, 2, dtype=torch.int64))


# ---- predictive scores


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 10])
def test_crps_equals_pyro_and_its_definition(count: int, dtype: torch.dtype) -> None:
    pred, truth = torch.randn(count, 3, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    actual = stats.crps_empirical(pred, truth)
    close(actual, peer.crps_empirical(pred, truth))
    pairs = (pred.unsqueeze(0) - pred.unsqueeze(1)).abs().mean((0, 1))
    close(actual, (pred - truth).abs().mean(0) - pairs / 2)


@DTYPES
@pytest.mark.parametrize("block", [None, 1, 3, 100])
def test_energy_score_equals_pyro_and_its_definition(block: int | None, dtype: torch.dtype) -> None:
    pred, truth = torch.randn(5, 10, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    actual = stats.energy_score_empirical(pred, truth, block)
    close(actual, peer.energy_score_empirical(pred, truth, block), scale=10)
    pairs = (pred.unsqueeze(1) - pred.unsqueeze(2)).norm(dim=-1).mean((1, 2))
    close(actual, (pred - truth.unsqueeze(1)).norm(dim=-1).mean(1) - pairs / 2, scale=10)


def test_energy_score_of_several_truths() -> None:
    pred, truths = torch.randn(10, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    actual = stats.energy_score_empirical(pred, truths)
    close(actual, peer.energy_score_empirical(pred, truths))
    close(actual[1], stats.energy_score_empirical(pred, truths[1]))


def test_scores_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="Expected pred to have one extra sample dim on left"):
        stats.crps_empirical(torch.zeros(10, 3, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="Expected pred to have at most one extra dim versus truth"):
        stats.energy_score_empirical(torch.zeros(10, 3, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="equal batch dims"):
        stats.energy_score_empirical(torch.zeros(10, 3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="pred_batch_size must be positive, got 0"):
        stats.energy_score_empirical(torch.zeros(10, 4), torch.zeros(4), 0)
