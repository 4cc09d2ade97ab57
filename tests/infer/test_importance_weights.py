"""Importance weights: resampling, Pareto smoothing, and weights that are not finite."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.infer.abstract_infer import SavedPosterior
from sumprod.infer.importance import (
    Importance,
    LogWeightsMixin,
    psis_diagnostic,
    vectorized_importance_weights,
)
from sumprod.ops import stats
from tests.infer.importance_cases import OURS
from tests.infer.posterior_cases import DATA, exact_guide, log_evidence, normal_model

INF = math.inf
BOTH = pytest.mark.parametrize("vectorized", [False, True])


# ---- resampling and smoothing


@BOTH
def test_resample_gives_each_trace_its_share(vectorized: bool) -> None:
    posterior = Importance(*OURS, num_samples=50, vectorized=vectorized).run()
    resampled = posterior.resample(1000)
    share = posterior.get_normalized_weights().double() * 1000
    m = resampled.stack("m")
    for value, expected in zip(posterior.stack("m").tolist(), share.tolist(), strict=True):
        count = int((m == value).sum())
        assert math.floor(expected - 1e-6) <= count <= math.ceil(expected + 1e-6)
    assert resampled.log_weights == [0.0] * 1000
    assert len(resampled.exec_traces) == 1000
    assert resampled.exec_traces[17].nodes["m"]["value"] == m[17]
    assert resampled.exec_traces[-1].nodes["m"]["value"] == m[-1]
    assert len(resampled.exec_traces[5:8]) == 3
    expected = posterior.information_criterion()["waic"].item()
    assert resampled.information_criterion()["waic"].item() == pytest.approx(expected, rel=0.05)
    assert len(posterior.resample().exec_traces) == 50
    assert posterior.resample(0).exec_traces != posterior.exec_traces
    with pytest.raises(ValueError, match="num_samples must not be negative, got -1"):
        posterior.resample(-1)
    with pytest.raises(NotImplementedError, match="a resampled posterior cannot be run"):
        resampled.run()


def test_a_resampled_posterior_can_be_saved(tmp_path: Any) -> None:
    paths = iter(range(100))

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        if next(paths) % 2:
            sumprod.sample("extra", dist.Normal(0.0, 1.0))
        sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    resampled = Importance(model, lambda: sumprod.sample("z", dist.Normal(0.0, 1.0)), 10).run().resample(30)
    resampled.save(tmp_path / "file")
    read = SavedPosterior(tmp_path / "file")
    assert torch.equal(read.stack("z"), resampled.stack("z"))
    for stored, trace in zip(read.exec_traces, resampled.exec_traces, strict=True):
        assert ("extra" in stored) == ("extra" in trace)
        if "extra" in trace:
            assert stored.nodes["extra"]["value"] == trace.nodes["extra"]["value"]


def test_psis_smooths_the_weights() -> None:
    posterior = Importance(*OURS, num_samples=500, vectorized=True).run()
    expected = stats.psis(torch.stack(posterior.log_weights))
    smoothed = posterior.psis()
    torch.testing.assert_close(smoothed.log_weights, expected.log_weights)
    assert smoothed.pareto_k == expected.pareto_k
    torch.testing.assert_close(smoothed.log_weights.exp().sum(), torch.tensor(1.0))


def test_psis_diagnostic_grows_with_the_mismatch() -> None:
    def model(scale: float) -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))

    def guide(scale: float) -> None:
        sumprod.sample("z", dist.Normal(0.0, scale))

    # The weights' tail has shape 1 - scale^2: k = 0.75 at scale 0.5, 0 or less at scale 1.5. Estimates
    # from 20,000 weights have mean 0.68 and deviation 0.08 (100 simulations): four of them.
    narrow = psis_diagnostic(model, guide, scale=0.5, num_particles=20_000)
    assert narrow == pytest.approx(0.68, abs=0.32)
    assert psis_diagnostic(model, guide, 1.5, num_particles=20_000) < 0.2
    assert psis_diagnostic(model, guide, 1.0) == -INF


# ---- before a run, and weights that are not finite


def test_defaults() -> None:
    with pytest.warns(UserWarning, match="num_samples not provided, defaulting to 10"):
        posterior = Importance(normal_model)
    assert posterior.num_samples == 10
    trace = handlers.trace(posterior.guide).get_trace(DATA)
    assert list(trace.nodes) == ["_INPUT", "loc", "data", "_RETURN"]
    assert len(posterior.run(DATA).exec_traces) == 10
    with pytest.raises(ValueError, match="num_samples must not be negative, got -1"):
        Importance(normal_model, num_samples=-1)


def test_before_a_run_there_are_warnings() -> None:
    posterior = Importance(normal_model, num_samples=3)
    with pytest.warns(UserWarning, match=r"no log-weights.*call run\(\) first"):
        assert posterior.get_log_normalizer() is None
    with pytest.warns(UserWarning, match=r"no log-weights.*call run\(\) first"):
        assert posterior.get_normalized_weights() is None
    with pytest.warns(UserWarning, match=r"no log-weights.*call run\(\) first"):
        assert posterior.get_ESS() == 0
    with pytest.raises(ValueError, match=r"no log-weights: call run\(\) first"):
        posterior.psis()
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        posterior.resample()


@BOTH
def test_no_samples(vectorized: bool) -> None:
    posterior = Importance(normal_model, num_samples=0, vectorized=vectorized).run(DATA)
    assert posterior.exec_traces == []
    with pytest.warns(UserWarning, match="effective sample size is zero"):
        assert posterior.get_ESS() == 0


def impossible_model() -> None:
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
    sumprod.factor("limit", torch.tensor(-INF))


@BOTH
def test_trap_41_impossible_data(vectorized: bool) -> None:
    posterior = Importance(impossible_model, num_samples=5, vectorized=vectorized).run()
    assert posterior.get_ESS() == 0
    assert posterior.get_log_normalizer() == -INF
    message = r"all 5 log-weights are -inf, because of the density at site 'limit' \(model\) in 5 samples"
    for use in (posterior.get_normalized_weights, posterior.psis, posterior.resample):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match="cannot draw a trace: the largest log-weight is -inf"):
        posterior()


@BOTH
def test_some_impossible_samples_have_weight_zero(vectorized: bool) -> None:
    def model() -> None:
        z = sumprod.sample("z", dist.Bernoulli(0.5))
        sumprod.factor("even", torch.where(z == 0, 0.0, -INF))

    posterior = Importance(model, num_samples=40, vectorized=vectorized).run()
    even = posterior.stack("z") == 0
    weights = posterior.get_normalized_weights()
    torch.testing.assert_close(weights, even / even.sum())
    assert posterior.get_ESS().item() == pytest.approx(int(even.sum()), rel=1e-5)


@BOTH
def test_infinite_and_nan_weights_are_errors(vectorized: bool) -> None:
    def infinite() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("boost", torch.tensor(INF))

    def undefined() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("broken", torch.tensor(math.nan))

    def plain() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))

    def hopeless() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("never", z * 0 - INF, has_rsample=False)

    cases = (
        (infinite, plain, r"3 of 3 log-weights are \+inf, because of the density at site 'boost' \(model\)"),
        (
            undefined,
            plain,
            r"a log-weight is NaN, because of the density at site 'broken' \(model\) in 3 samples",
        ),
        (plain, hopeless, r"log-weights are \+inf, because of the density at site 'never' \(guide\)"),
    )
    for model, guide, message in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the trace warns of NaN and +inf, too
            posterior = Importance(model, guide, 3, vectorized=vectorized).run()
        for use in (posterior.get_log_normalizer, posterior.get_normalized_weights, posterior.get_ESS):
            with pytest.raises(ValueError, match=message):
                use()


class Weights(LogWeightsMixin):
    def __init__(self, log_weights: Any) -> None:
        self.log_weights = log_weights


def test_estimates_are_summed_in_double() -> None:
    # In float32 a sum of a million equal weights, one after the other, loses its last digits.
    weights = Weights(torch.full((1_000_003,), -1234.5))
    assert weights.get_log_normalizer() == -1234.5
    assert weights.get_ESS() == 1_000_003
    assert weights.get_ESS().dtype == torch.float32
    spread = torch.randn(1000, dtype=torch.float64) * 3
    exact = spread.logsumexp(0) - math.log(1000)
    torch.testing.assert_close(Weights(spread).get_log_normalizer(), exact)
    assert Weights(spread.tolist()).get_log_normalizer().item() == pytest.approx(exact.item(), rel=1e-6)
    assert Weights(spread.half()).get_log_normalizer().dtype == torch.float16


# ---- arguments


def test_vectorized_weights_arguments() -> None:
    with pytest.raises(ValueError, match="must provide max_plate_nesting"):
        vectorized_importance_weights(*OURS, num_samples=3)
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        vectorized_importance_weights(*OURS, num_samples=0, max_plate_nesting=1)
    weights, _, _ = vectorized_importance_weights(*OURS, max_plate_nesting=1)
    assert weights.shape == (1,)
    weights, _, _ = vectorized_importance_weights(*OURS, num_samples=9, max_plate_nesting=1, normalized=True)
    torch.testing.assert_close(weights.exp().sum(), torch.tensor(1.0))
    weights, _, _ = vectorized_importance_weights(
        normal_model, exact_guide, DATA, num_samples=9, max_plate_nesting=1, size=4
    )
    torch.testing.assert_close(weights, torch.full((9,), log_evidence()))


def test_psis_diagnostic_arguments() -> None:
    with pytest.raises(ValueError, match="num_particles must be divisible by max_simultaneous_particles"):
        psis_diagnostic(*OURS, num_particles=10, max_simultaneous_particles=3)
    with pytest.warns(UserWarning, match="Not enough tail samples"):
        assert psis_diagnostic(*OURS, num_particles=20) == INF
    with pytest.raises(ValueError, match="the largest of 30 log-weights is -inf"):
        psis_diagnostic(
            impossible_model, lambda: sumprod.sample("z", dist.Normal(0.0, 1.0)), num_particles=30
        )
