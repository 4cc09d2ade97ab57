"""WeighedPredictive and MHResampler: weights of guide draws, and samples that need none."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer import WeighedPredictive as PyroWeighedPredictive
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod.infer.predictive import MHResampler, Predictive, WeighedPredictive, WeighedPredictiveResults
from sumprod.ops.stats import weighed_quantile
from tests.infer.posterior_cases import DATA, exact_guide, log_evidence, normal_model, normal_posterior

BOTH = pytest.mark.parametrize("parallel", [False, True])


def wide_guide(data: Tensor | None = DATA, size: int = 4) -> None:
    sumprod.sample("loc", dist.Normal(0.5, 1.0))


@BOTH
def test_weights_are_density_ratios(parallel: bool) -> None:
    result = WeighedPredictive(normal_model, guide=wide_guide, num_samples=30, parallel=parallel)(DATA)
    assert isinstance(result, WeighedPredictiveResults)
    assert {name: tuple(x.shape) for name, x in result.samples.items()} == {"loc": (30, 1), "x": (30, 4)}
    loc = result.samples["loc"]
    prior = torch.distributions.Normal(0.0, 2.0).log_prob(loc)[:, 0]
    likelihood = torch.distributions.Normal(loc, 1.0).log_prob(DATA).sum(1)
    guide = torch.distributions.Normal(0.5, 1.0).log_prob(loc)[:, 0]
    torch.testing.assert_close(result.model_log_prob, prior + likelihood)
    torch.testing.assert_close(result.guide_log_prob, guide)
    torch.testing.assert_close(result.log_weights, prior + likelihood - guide)
    assert not result.log_weights.requires_grad


@BOTH
def test_model_guide_has_the_data(parallel: bool) -> None:
    predictive = WeighedPredictive(normal_model, guide=exact_guide, num_samples=20, parallel=parallel)
    result = predictive(None, model_guide=lambda data: normal_model(DATA))
    assert result.samples["x"].std() > 0.3  # generated
    torch.testing.assert_close(result.log_weights, torch.full((20,), log_evidence()))
    assert result.get_ESS().item() == pytest.approx(20)
    assert result.get_log_normalizer().item() == pytest.approx(log_evidence(), abs=1e-5)


@BOTH
def test_equals_pyro(parallel: bool) -> None:
    def programs(library: Any, family: Any) -> tuple[Any, Any]:
        def model(data: Tensor) -> None:
            m = library.sample("m", family.Normal(0.0, 1.0))
            with library.plate("d", 3):
                library.sample("x", family.Normal(m, 1.0), obs=data)

        # The guide draws fixed values, so that random streams do not matter.
        def guide(data: Tensor) -> None:
            library.sample("m", family.Delta(torch.tensor(0.7), log_density=torch.tensor(-0.3)))

        return model, guide

    model, guide = programs(sumprod, dist)
    peer_model, peer_guide = programs(pyro, pyro_dist)
    data = torch.tensor([0.5, 1.0, -0.3])
    options: dict[str, Any] = {"num_samples": 4, "parallel": parallel}
    actual = WeighedPredictive(model, guide=guide, **options)(data)
    expected = PyroWeighedPredictive(peer_model, guide=peer_guide, **options)(data, model_guide=peer_model)
    for name in ("log_weights", "model_log_prob", "guide_log_prob"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))
    assert {k: v.shape for k, v in actual.samples.items()} == {
        k: v.shape for k, v in expected.samples.items()
    }


def test_latent_sites_that_the_guide_leaves_to_the_model_cancel() -> None:
    def model() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
        with sumprod.plate("data", 4):
            x = sumprod.sample("x", dist.Normal(loc, 1.0), obs=DATA)
        sumprod.sample("later", dist.Normal(x.sum() + loc, 3.0))

    result = WeighedPredictive(model, guide=exact_guide, num_samples=10)()
    torch.testing.assert_close(result.log_weights, torch.full((10,), log_evidence()))
    assert result.samples["later"].std() > 0


def test_weighted_quantiles_correct_the_guide(seed: int) -> None:
    result = WeighedPredictive(normal_model, guide=wide_guide, num_samples=20_000, parallel=True)(DATA)
    mean, variance = normal_posterior()
    probs = [0.1, 0.5, 0.9]
    actual = weighed_quantile(result.samples["loc"][:, 0], probs, result.log_weights)
    posterior = torch.distributions.Normal(mean, variance**0.5)
    exact = posterior.icdf(torch.tensor(probs))
    # Five standard errors of a quantile, sqrt(p (1 - p) / ESS) / density.
    density = posterior.log_prob(exact).exp()
    p = torch.tensor(probs)
    error = 5 * (p * (1 - p) / result.get_ESS()).sqrt() / density
    assert ((actual - exact).abs() < error).all()


def test_needs_a_guide() -> None:
    with pytest.raises(ValueError, match="WeighedPredictive needs a guide"):
        WeighedPredictive(normal_model, num_samples=3)(DATA)
    with pytest.raises(ValueError, match="WeighedPredictive needs a guide"):
        WeighedPredictive(normal_model, {"loc": torch.zeros(3)})(DATA)
    assert issubclass(WeighedPredictive, Predictive)


def test_chunks_and_call() -> None:
    predictive = WeighedPredictive(normal_model, guide=exact_guide, num_samples=7, parallel=True, chunk=3)
    result = predictive.call(DATA)
    assert [tuple(x.shape) for x in result.samples] == [(7, 1), (7, 4)]
    assert result.log_weights.shape == (7,)


def test_clone_shares_no_tensor() -> None:
    result = WeighedPredictive(normal_model, guide=exact_guide, num_samples=3)(DATA)
    copy = result.clone()
    copy.samples["loc"].zero_()
    copy.log_weights.zero_()
    assert (result.samples["loc"] != 0).all()
    assert (result.log_weights != 0).all()


# ---- resampling


TARGET = torch.tensor([0.1, 0.6, 0.3])


def three_states(count: int) -> Any:
    """Samples uniform over three states, with the weights of `TARGET`."""

    def sampler() -> WeighedPredictiveResults:
        state = torch.randint(3, (count,))
        model, guide = TARGET.log()[state], torch.full((count,), -math.log(3.0))
        samples = {"state": state, "pair": torch.stack([state, -state], -1)}
        return WeighedPredictiveResults(samples, model - guide, guide, model)

    return sampler


def test_metropolis_hastings_reaches_the_target() -> None:
    resampler = MHResampler(three_states(6000))
    first = resampler().samples["state"]
    assert resampler.get_total_transition_count() == 0
    for _ in range(40):
        state = resampler()
    counts = state.samples["state"].bincount(minlength=3)
    # The second eigenvalue of the chain is 0.5: 40 steps leave nothing of the start. Chi-square with 2
    # degrees of freedom: above 18.4 once in 10,000 seeds.
    expected = TARGET * 6000
    assert ((counts - expected) ** 2 / expected).sum() < 18.4
    assert ((first.bincount(minlength=3) - 2000.0) ** 2 / 2000).sum() < 18.4
    assert torch.equal(
        state.samples["pair"], torch.stack([state.samples["state"], -state.samples["state"]], -1)
    )
    torch.testing.assert_close(state.model_log_prob, TARGET.log()[state.samples["state"]])
    torch.testing.assert_close(state.log_weights, state.model_log_prob - state.guide_log_prob)


def test_transition_counts() -> None:
    resampler = MHResampler(three_states(50))
    previous, moved = resampler(), torch.zeros(50, dtype=torch.int64)
    for _ in range(20):
        state = resampler()
        moved += state.samples["state"] != previous.samples["state"]
        previous = state
    assert (resampler.transition_count >= moved).all()  # a sample may be replaced by an equal one
    assert resampler.get_total_transition_count() == resampler.transition_count.sum()
    assert resampler.get_min_sample_transition_count() == resampler.transition_count.min()
    assert resampler.get_min_sample_transition_count() > 0


def test_impossible_samples_are_replaced() -> None:
    weights = iter([torch.full((4,), -math.inf), torch.full((4,), -math.inf), torch.zeros(4)])

    def sampler() -> WeighedPredictiveResults:
        weight = next(weights)
        return WeighedPredictiveResults({"z": weight}, weight, torch.zeros(4), weight)

    resampler = MHResampler(sampler)
    resampler()
    resampler()
    assert torch.equal(resampler().samples["z"], torch.zeros(4))
    assert resampler.transition_count.tolist() == [2] * 4


def test_kept_calls() -> None:
    resampler = MHResampler(three_states(10), slice(1, 6, 2), slice(3, None))
    states = [resampler() for _ in range(7)]
    assert len(resampler.source_samples) == 3
    stored = resampler.get_stored_samples()
    assert torch.equal(stored.samples["state"], torch.cat([s.samples["state"] for s in states[3:]]))
    assert stored.log_weights.shape == (40,)
    assert resampler.get_source_samples().samples["pair"].shape == (30, 2)


def test_resampler_says_what_is_wrong() -> None:
    resampler = MHResampler(three_states(5))
    resampler()
    for use in (resampler.get_source_samples, resampler.get_stored_samples):
        with pytest.raises(ValueError, match="no samples have been kept"):
            use()
    resampler.sampler = three_states(6)
    with pytest.raises(ValueError, match="the sampler gave 6 samples, 5 before"):
        resampler()
