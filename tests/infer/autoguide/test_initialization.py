"""Initial values by strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.distributions import constraints
from sumprod.infer.autoguide import (
    InitMessenger,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)

peer = pytest.importorskip("pyro", reason="pyro-ppl is the peer; it comes with the test extra")
from pyro.infer.autoguide import initialization as peer_initialization  # noqa: E402

STRATEGIES: dict[str, Any] = {
    "init_to_feasible": {},
    "init_to_sample": {},
    "init_to_median": {},
    "init_to_median ": {"num_samples": 4},
    "init_to_mean": {},
    "init_to_uniform": {},
    "init_to_uniform ": {"radius": 0.1},
}

FAMILIES = {
    "normal": lambda d: d.Normal(torch.tensor([1.0, 2.0]), 1.0),
    "gamma": lambda d: d.Gamma(2.0, 3.0),
    "simplex": lambda d: d.Dirichlet(torch.tensor([2.0, 3.0, 1.0])),
    "multivariate": lambda d: d.MultivariateNormal(torch.ones(2), torch.eye(2)),
    "to_event": lambda d: d.Normal(torch.zeros(3), 1.0).to_event(1),
    "cholesky": lambda d: d.LKJCholesky(3, 1.0),
    "no mean": lambda d: d.Cauchy(0.0, 1.0),
    "interval": lambda d: d.Uniform(1.0, 3.0),
    "masked": lambda d: d.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])),
    "heavy tails": lambda d: d.StudentT(0.5, 0.0, 1.0),
    "beta": lambda d: d.Beta(2.0, 1.0),
}


def site(fn: Any, name: str = "x") -> dict[str, Any]:
    return {"type": "sample", "name": name, "fn": fn, "value": None, "cond_indep_stack": ()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_values_and_streams_are_pyros(strategy: str, family: str) -> None:
    found = []
    for library, module in ((sumprod, sumprod.infer.autoguide), (peer, peer_initialization)):
        torch.manual_seed(0)
        function = getattr(module, strategy.strip())(**STRATEGIES[strategy])
        value = function(site(FAMILIES[family](library.distributions)))
        assert not value.requires_grad
        found.append((value, torch.rand(()).item()))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_an_infinite_mean_falls_back_to_the_median() -> None:
    value = init_to_mean(site(dist.HalfCauchy(torch.ones(5))))
    assert torch.isfinite(value).all()
    assert init_to_mean(site(dist.Cauchy(0.0, 1.0)), fallback=None) is None


def test_a_median_of_nan_falls_back() -> None:
    class Broken(dist.Normal):  # type: ignore[misc, valid-type]
        def sample(self, sample_shape: Any = ()) -> Any:
            return super().sample(sample_shape) + float("nan")

    assert init_to_median(site(Broken(3.0, 1.0))).item() == 0.0
    assert init_to_median(site(Broken(3.0, 1.0)), fallback=init_to_mean).item() == 3.0
    assert init_to_median(site(Broken(3.0, 1.0)), fallback=None) is None


def test_the_median_of_a_point_mass_is_its_point() -> None:
    assert init_to_median(site(dist.Delta(torch.tensor(3.0)))).item() == 3.0


def test_a_density_that_cannot_be_sampled_has_feasible_points() -> None:
    class Improper(dist.TorchDistribution):
        arg_constraints: dict[str, Any] = {}  # noqa: RUF012
        support = constraints.positive

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return -value.log()

    for strategy in (init_to_feasible, init_to_median, init_to_mean):
        assert strategy(site(Improper(torch.Size([2])))).tolist() == [1.0, 1.0]
    assert (init_to_uniform(site(Improper(torch.Size([2])))) > 0).all()


def test_values_are_given_by_name() -> None:
    strategy = init_to_value(values={"x": torch.tensor(4.0)})
    assert strategy(site(dist.Normal(0.0, 1.0))).item() == 4.0
    assert abs(strategy(site(dist.Normal(0.0, 1.0), "y")).item()) <= 2.0
    strategy = init_to_value(values={"x": torch.tensor(4.0)}, fallback=init_to_mean)
    assert strategy(site(dist.Normal(7.0, 1.0), "y")).item() == 7.0
    assert init_to_value(values={}, fallback=None)(site(dist.Normal(0.0, 1.0))) is None


# ---- the handler


def model() -> None:
    sumprod.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with sumprod.plate("p", 3, subsample_size=2):
        sumprod.sample("y", dist.LogNormal(0.0, 1.0))
    sumprod.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(5.0))


def values(strategy: Any) -> dict[str, Any]:
    nodes = handlers.trace(InitMessenger(strategy)(model)).get_trace().nodes
    return {name: nodes[name]["value"] for name in ("x", "y", "z")}


def test_latent_sites_get_the_values_of_the_strategy() -> None:
    found = values(init_to_feasible)
    assert found["x"].tolist() == [0.0, 0.0]
    assert found["y"].tolist() == [1.0, 1.0]
    assert found["z"].item() == 5.0


@pytest.mark.parametrize("value", [7.0, 7, torch.tensor(7.0), torch.tensor([7.0, 7.0])])
def test_values_are_broadcast_to_the_site(value: Any) -> None:
    assert values(init_to_value(values={"x": value}))["x"].tolist() == [7.0, 7.0]


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"site 'x' has shape \(3,\), which does not broadcast to .*\(2,\)"):
        values(init_to_value(values={"x": torch.zeros(3)}))


def test_none_leaves_the_draw_to_the_program() -> None:
    torch.manual_seed(0)
    expected = torch.randn(2)
    torch.manual_seed(0)
    assert torch.equal(values(lambda site: None)["x"], expected)


def test_strategies_are_generated_once_per_run() -> None:
    count = 0

    def generate() -> Any:
        nonlocal count
        count += 1
        return init_to_value(values={"x": torch.full((2,), float(count)), "y": 1.0})

    handler = InitMessenger(init_to_generated(generate=generate))
    for expected in (1.0, 2.0):
        nodes = handlers.trace(handler(model)).get_trace().nodes
        assert nodes["x"]["value"].tolist() == [expected, expected]
    assert init_to_generated(site(dist.Normal(0.0, 1.0)), generate=lambda: init_to_sample).dim() == 0
    assert init_to_generated()(site(dist.Normal(0.0, 1.0))).abs() <= 2


@pytest.mark.parametrize("fn", [dist.Categorical(torch.ones(3)), dist.Bernoulli(0.5), dist.Poisson(2.0)])
def test_a_discrete_site_gets_a_helpful_error(fn: Any) -> None:
    def discrete() -> None:
        with sumprod.plate("data", 2):
            sumprod.sample("k", fn)

    with pytest.raises(
        ValueError, match=r"Continuous inference cannot handle discrete sample site 'k' in plate 'data'"
    ) as error:
        InitMessenger(init_to_feasible)(discrete)()
    assert error.value.site == "k"  # type: ignore[attr-defined]
    assert "hide=['k']" in str(error.value)
