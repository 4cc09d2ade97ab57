"""WAIC and leave-one-out of posterior containers, against direct sums, exact values and Pyro."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer.abstract_infer import TracePosterior as PyroTracePosterior
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from tests.infer.posterior_cases import DATA, FromRuns, normal_model, normal_posterior


def direct_waic(density: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pointwise WAIC and p from log-densities (samples, points), by the definition."""
    share = log_weights.double().softmax(0)[:, None]
    density = density.double()
    lpd = (share * density.exp()).sum(0).log()
    mean = (share * density).sum(0)
    count = len(density)
    p = (share * (density - mean) ** 2).sum(0) * count / (count - 1)
    return -2 * (lpd - p), p


def normal_density(posterior: Any, data: Tensor = DATA) -> Tensor:
    return torch.distributions.Normal(posterior.stack("loc")[:, None], 1.0).log_prob(data)


@pytest.mark.parametrize("num_chains", [1, 2])
def test_waic_is_the_direct_sum(num_chains: int) -> None:
    weights = torch.randn(20)
    posterior = FromRuns(normal_model, list(weights), num_chains=num_chains).run()
    waic, p_waic = direct_waic(normal_density(posterior), weights)
    pointwise = posterior.information_criterion(pointwise=True)
    assert list(pointwise) == ["waic", "p_waic"]
    torch.testing.assert_close(pointwise["waic"], waic.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pointwise["p_waic"], p_waic.float(), rtol=1e-5, atol=1e-5)
    total = posterior.information_criterion()
    torch.testing.assert_close(total["waic"], waic.sum().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total["p_waic"], p_waic.sum().float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_chains", [1, 3])
@pytest.mark.parametrize("pointwise", [False, True])
def test_waic_equals_pyro(pointwise: bool, num_chains: int, seed: int) -> None:
    weights = torch.randn(30)

    def peer_model() -> None:
        loc = pyro.sample("loc", pyro_dist.Normal(0.0, 2.0))
        with pyro.plate("data", 4):
            pyro.sample("x", pyro_dist.Normal(loc, 1.0), obs=DATA)

    class Peer(PyroTracePosterior):
        def _traces(self) -> Any:
            for number, weight in enumerate(weights):
                yield pyro.poutine.trace(peer_model).get_trace(), weight, number % num_chains

    torch.manual_seed(seed)
    expected = Peer(num_chains).run().information_criterion(pointwise)
    torch.manual_seed(seed)
    actual = (
        FromRuns(normal_model, list(weights), num_chains=num_chains).run().information_criterion(pointwise)
    )
    assert list(actual) == list(expected)
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_before_a_run_it_is_empty() -> None:
    assert FromRuns(normal_model, [0.0]).information_criterion() == {}


def test_trap_38_masked_points_do_not_count() -> None:
    mask = torch.tensor([True, False, True, True])

    def by_handler() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
        data = torch.where(mask, DATA, torch.nan)
        with sumprod.plate("data", 4), handlers.mask(mask=mask):
            sumprod.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=data)

    def by_distribution() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
        with sumprod.plate("data", 4):
            sumprod.sample("x", dist.Normal(loc, 1.0).mask(mask), obs=DATA)

    for model in (by_handler, by_distribution):
        weights = torch.randn(25)
        posterior = FromRuns(model, list(weights)).run()
        waic, p_waic = direct_waic(normal_density(posterior), weights)
        pointwise = posterior.information_criterion(pointwise=True)
        torch.testing.assert_close(pointwise["waic"], waic.float() * mask, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pointwise["p_waic"], p_waic.float() * mask, rtol=1e-5, atol=1e-5)
        assert abs(posterior.information_criterion(pointwise=True, kind="loo")["loo"][1]) < 1e-6


def test_scale_is_left_out() -> None:
    def model() -> None:
        with handlers.scale(scale=7.0):
            normal_model()

    weights = torch.randn(10)
    posterior = FromRuns(model, list(weights)).run()
    waic, _ = direct_waic(normal_density(posterior), weights)
    torch.testing.assert_close(
        posterior.information_criterion()["waic"], waic.sum().float(), rtol=1e-5, atol=1e-5
    )


def two_sites() -> None:
    loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
    with sumprod.plate("data", 4):
        sumprod.sample("x", dist.Normal(loc, 1.0), obs=DATA)
    sumprod.sample("y", dist.Normal(loc, 0.5), obs=torch.tensor(0.1))
    sumprod.deterministic("twice", loc * 2)


def test_several_observed_sites_add_up() -> None:
    weights = torch.randn(10)
    posterior = FromRuns(two_sites, list(weights)).run()
    with pytest.raises(
        ValueError, match=r"only works for models with one observation node; it has 2: \['x', 'y'\]"
    ):
        posterior.information_criterion()
    x = normal_density(posterior)
    y = torch.distributions.Normal(posterior.stack("loc"), 0.5).log_prob(torch.tensor(0.1))
    waic, p_waic = direct_waic(torch.cat([x, y[:, None]], dim=1), weights)
    both = posterior.information_criterion(sites=["x", "y"])
    torch.testing.assert_close(both["waic"], waic.sum().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both["p_waic"], p_waic.sum().float(), rtol=1e-5, atol=1e-5)
    joined = posterior.information_criterion(pointwise=True, sites=("x", "y"))
    torch.testing.assert_close(joined["waic"], waic.float(), rtol=1e-5, atol=1e-5)
    alone = posterior.information_criterion(sites="y", pointwise=True)["waic"]
    assert alone.shape == ()
    torch.testing.assert_close(alone, waic[4].float(), rtol=1e-5, atol=1e-5)


def test_deterministic_sites_are_not_data() -> None:
    def model() -> None:
        loc = normal_model()
        sumprod.deterministic("loc again", loc)

    assert FromRuns(model, [0.0, 0.0]).run().information_criterion()["waic"].isfinite()


def test_pointwise_has_the_batch_shape() -> None:
    def model() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
        with sumprod.plate("rows", 3, dim=-2), sumprod.plate("columns", 2, dim=-1):
            sumprod.sample("x", dist.Normal(loc, 1.0).expand([3, 2, 5]).to_event(1), obs=torch.zeros(3, 2, 5))

    posterior = FromRuns(model, [0.0, 0.0, 0.0]).run()
    for kind in ("waic", "loo"):
        for value in posterior.information_criterion(pointwise=True, kind=kind).values():  # type: ignore[arg-type]
            assert value.shape == (3, 2)


def test_subsampled_plates_are_refused() -> None:
    def vectorized() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
        with sumprod.plate("data", 4, subsample_size=2) as index:
            sumprod.sample("x", dist.Normal(loc, 1.0), obs=DATA[index])

    def sequential() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
        for i in sumprod.plate("data", 4, subsample=[2]):
            sumprod.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=DATA[i])

    for model, used in ((vectorized, 2), (sequential, 1)):
        message = rf"is in plate 'data', which uses {used} of 4 data points.*subsample_size=None"
        with pytest.raises(ValueError, match=message):
            FromRuns(model, [0.0, 0.0]).run().information_criterion()


def test_says_what_is_wrong() -> None:
    runs = iter(range(100))

    def changing() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 1.0))
        sumprod.sample("x" if next(runs) % 2 else "y", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))

    def growing() -> None:
        count = 2 + next(runs) % 2
        with sumprod.plate("data", count):
            sumprod.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(count))

    def sometimes() -> None:
        sumprod.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
        sumprod.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0) if next(runs) % 2 else None)

    with pytest.raises(ValueError, match="only works for models with one observation node; it has none"):
        FromRuns(lambda: sumprod.sample("z", dist.Normal(0.0, 1.0)), [0.0]).run().information_criterion()
    with pytest.raises(ValueError, match="Observation node has been changed: one trace observes"):
        FromRuns(changing, [0.0] * 4).run().information_criterion()
    with pytest.raises(
        ValueError, match=r"Observation node has been changed: site 'x' has batch shape \(\d,\)"
    ):
        FromRuns(growing, [0.0] * 4).run().information_criterion()
    with pytest.raises(
        ValueError, match="Observation node has been changed: site 'x' is not observed in trace"
    ):
        FromRuns(sometimes, [0.0] * 4).run().information_criterion(sites=["x"])
    posterior = FromRuns(normal_model, [0.0, 0.0]).run()
    with pytest.raises(ValueError, match="site 'loc' is not observed in trace 0"):
        posterior.information_criterion(sites=["loc"])
    with pytest.raises(KeyError, match="no site 'w' in trace 0"):
        posterior.information_criterion(sites=["w"])
    with pytest.raises(ValueError, match="sites is empty"):
        posterior.information_criterion(sites=[])
    with pytest.raises(ValueError, match="kind must be 'waic' or 'loo', got 'dic'"):
        posterior.information_criterion(kind="dic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs at least 2 traces, got 1"):
        FromRuns(normal_model, [0.0]).run().information_criterion()


class FromPosterior(FromRuns):
    """Draws of loc from its exact posterior; or of one with another spread, weighted accordingly."""

    spread = 1.0

    def _traces(self) -> Any:
        mean, variance = normal_posterior()
        target = torch.distributions.Normal(mean, variance**0.5)
        proposal = torch.distributions.Normal(mean, self.spread * variance**0.5)
        for _ in self.weights:
            loc = proposal.sample()
            model = handlers.condition(normal_model, data={"loc": loc})
            yield handlers.trace(model).get_trace(), target.log_prob(loc) - proposal.log_prob(loc)


@pytest.mark.parametrize("spread", [1.0, 1.3])
def test_loo_is_the_exact_predictive_density(spread: float) -> None:
    posterior = FromPosterior(normal_model, range(2000))
    posterior.spread = spread
    result = posterior.run().information_criterion(pointwise=True, kind="loo", sites=["x"])
    assert list(result) == ["loo", "p_loo", "pareto_k"]
    exact = []
    for i in range(4):
        mean, variance = normal_posterior(torch.cat([DATA[:i], DATA[i + 1 :]]))
        exact.append(-2 * torch.distributions.Normal(mean, (variance + 1) ** 0.5).log_prob(DATA[i]).item())
    # Over 200 simulations of 2,000 draws the standard deviation of an entry was at most 0.048, its bias
    # 0.006: five of the former.
    torch.testing.assert_close(result["loo"], torch.tensor(exact), rtol=0, atol=0.25)
    assert (result["pareto_k"] < 0.7).all()
    total = posterior.information_criterion(kind="loo", sites=["x"])
    torch.testing.assert_close(total["loo"], result["loo"].sum())
    torch.testing.assert_close(total["p_loo"], result["p_loo"].sum())
    assert total["pareto_k"] == result["pareto_k"].max()


def test_loo_of_an_impossible_point_is_infinite() -> None:
    runs = iter(range(100))

    def model() -> None:
        high = 2.0 if next(runs) % 2 else 1.0
        with sumprod.plate("data", 2):
            uniform = dist.Uniform(torch.zeros(2), high, validate_args=False)
            sumprod.sample("x", uniform, obs=torch.tensor([0.5, 1.5]))

    result = FromRuns(model, [0.0] * 50).run().information_criterion(pointwise=True, kind="loo")
    assert result["loo"].isfinite().tolist() == [True, False]
    assert result["loo"][1] == float("inf")
    assert result["pareto_k"][1] == float("inf")


def test_log_likelihood_is_named_by_site() -> None:
    posterior = FromRuns(normal_model, [0.0] * 3).run()
    densities = posterior.log_likelihood()
    assert isinstance(densities, OrderedDict)
    torch.testing.assert_close(densities["x"], normal_density(posterior))
    assert torch.equal(posterior.log_likelihood("x")["x"], densities["x"])
