"""Predictive: shapes and values of prior and posterior predictive samples, against Pyro and exact moments."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer import Predictive as PyroPredictive
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.infer.predictive import Predictive
from tests.infer.posterior_cases import DATA, exact_guide, normal_model, normal_posterior

BOTH = pytest.mark.parametrize("parallel", [False, True])


def program(library: Any, family: Any) -> tuple[Any, Any]:
    """A model with sites at all levels of two plates, and a guide for part of it."""

    def model(data: Tensor | None = None) -> Tensor:
        m = library.sample("m", family.Normal(0.0, 1.0))
        library.sample("v", family.Normal(torch.zeros(2), 1.0).to_event(1))
        with library.plate("rows", 3, dim=-2):
            r = library.sample("r", family.Normal(m, 1.0))
            with library.plate("columns", 4, dim=-1):
                x = library.sample("x", family.Normal(r, 1.0), obs=data)
                library.sample("y", family.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        library.deterministic("twice", m * 2)
        library.factor("bonus", m)
        return x.sum((-1, -2))

    def guide(data: Tensor | None = None) -> None:
        loc = library.param("loc", torch.tensor(3.0))
        library.sample("m", family.Normal(loc, 0.1))
        with library.plate("rows", 3, dim=-2):
            library.sample("r", family.Normal(loc, 0.1))

    return model, guide


MODEL_ORDER = ("m", "v", "r", "x", "y", "twice", "bonus", "_RETURN")
MODEL, GUIDE = program(sumprod, dist)
PEER_MODEL, PEER_GUIDE = program(pyro, pyro_dist)


def shapes(samples: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in samples.items()}


SAMPLES = {
    "global": {"m": torch.randn(5)},
    "padded": {"m": torch.randn(5, 1, 1)},
    "local": {"m": torch.randn(5), "r": torch.randn(5, 3, 1), "v": torch.randn(5, 1, 1, 2)},
    "unknown": {"m": torch.randn(5), "other": torch.randn(5, 7)},
}


@BOTH
@pytest.mark.parametrize("data", [None, torch.zeros(3, 4)])
@pytest.mark.parametrize("sites", [(), ("m", "x", "y", "_RETURN"), ["m"], {"twice"}, None])
@pytest.mark.parametrize("given", ["number", "guide", *SAMPLES])
def test_shapes_are_those_of_pyro(given: str, sites: Any, data: Tensor | None, parallel: bool) -> None:
    options: dict[str, Any] = {"return_sites": sites, "parallel": parallel}
    if given in SAMPLES:
        actual = Predictive(MODEL, SAMPLES[given], **options)(data)
        expected = PyroPredictive(PEER_MODEL, SAMPLES[given], **options)(data)
    else:
        options["num_samples"] = 5
        guides = (GUIDE, PEER_GUIDE) if given == "guide" else (None, None)
        actual = Predictive(MODEL, guide=guides[0], **options)(data)
        expected = PyroPredictive(PEER_MODEL, guide=guides[1], **options)(data)
    assert shapes(actual) == shapes(expected)
    assert [name for name in MODEL_ORDER if name in actual] == list(actual)


@BOTH
def test_trap_42_dims_of_size_one(parallel: bool) -> None:
    padded = Predictive(MODEL, num_samples=6, parallel=parallel)()
    assert shapes(padded) == {
        "m": (6, 1, 1),
        "v": (6, 1, 1, 2),
        "r": (6, 3, 1),
        "x": (6, 3, 4),
        "y": (6, 3, 4, 2),
        "twice": (6, 1, 1),
        "bonus": (6, 1, 1, 0),
    }
    squeezed = Predictive(MODEL, num_samples=6, parallel=parallel, squeeze=True)()
    assert shapes(squeezed) == {
        "m": (6,),
        "v": (6, 2),
        "r": (6, 3, 1),
        "x": (6, 3, 4),
        "y": (6, 3, 4, 2),
        "twice": (6,),
        "bonus": (6, 0),
    }


@BOTH
def test_posterior_samples_reach_their_sites(parallel: bool) -> None:
    m, r = torch.arange(5.0) * 1000, torch.arange(15.0).reshape(5, 3, 1) * 1000
    predictive = Predictive(MODEL, {"m": m, "r": r}, return_sites=("m", "r", "x", "twice"), parallel=parallel)
    samples = predictive()
    assert torch.equal(samples["m"].flatten(), m)
    assert torch.equal(samples["r"], r)
    assert torch.equal(samples["twice"].flatten(), m * 2)
    assert ((samples["x"] - r).abs() < 10).all()
    assert samples["x"].std() > 0


@BOTH
def test_samples_of_observed_sites_replace_the_data(parallel: bool) -> None:
    given = {"x": torch.ones(2, 3, 4)}
    samples = Predictive(MODEL, given, return_sites=["x"], parallel=parallel)(torch.zeros(3, 4))
    assert torch.equal(samples["x"], given["x"])


@BOTH
def test_guide_draws_reach_the_model(parallel: bool) -> None:
    samples = Predictive(MODEL, guide=GUIDE, num_samples=50, parallel=parallel)()
    assert (samples["m"] - 3).abs().max() < 1
    assert (samples["r"] - 3).abs().max() < 1
    assert samples["v"].std() > 0.5  # not in the guide: from the prior
    torch.testing.assert_close(samples["twice"], samples["m"] * 2)


def test_sequential_draws_are_those_of_ordinary_runs(seed: int) -> None:
    torch.manual_seed(seed)
    actual = Predictive(MODEL, num_samples=3)()
    torch.manual_seed(seed)
    for number in range(3):
        nodes = handlers.trace(MODEL).get_trace().nodes
        for name in ("m", "v", "x", "y"):
            assert torch.equal(actual[name][number].reshape(-1), nodes[name]["value"].reshape(-1))
    torch.manual_seed(seed)
    actual = Predictive(MODEL, guide=GUIDE, num_samples=2)()
    torch.manual_seed(seed)
    for number in range(2):
        guide_trace = handlers.trace(GUIDE).get_trace()
        nodes = handlers.trace(handlers.replay(MODEL, trace=guide_trace)).get_trace().nodes
        assert torch.equal(actual["x"][number], nodes["x"]["value"])


def test_guide_and_model_share_the_subsample() -> None:
    def model() -> Tensor:
        with sumprod.plate("data", 100, subsample_size=3) as index:
            z = sumprod.sample("z", dist.Normal(0.0, 1.0))
            sumprod.sample("x", dist.Normal(z, 1.0))
        return index - z

    def guide() -> None:
        with sumprod.plate("data", 100, subsample_size=3) as index:
            sumprod.sample("z", dist.Delta(index.float()))

    for parallel in (False, True):
        samples = Predictive(
            model, guide=guide, num_samples=20, return_sites=["z", "_RETURN"], parallel=parallel
        )()
        assert (samples["_RETURN"] == 0).all()


@BOTH
def test_predictions_have_the_exact_moments(parallel: bool) -> None:
    count = 20_000 if parallel else 2000
    samples = Predictive(normal_model, guide=exact_guide, num_samples=count, parallel=parallel)(None)
    mean, variance = normal_posterior()
    average = samples["x"].double().mean(1)
    expected = variance + 1 / 4
    # Five standard errors.
    assert average.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(expected / count))
    assert average.var().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / count))


def test_chunks_bound_the_size_of_a_run() -> None:
    sizes = []

    def model() -> Tensor:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sizes.append(z.numel())
        return z

    given = {"z": torch.arange(10.0)}
    predictive = Predictive(model, given, return_sites=["z", "_RETURN"], parallel=True, chunk=4)
    samples = predictive()
    assert sizes == [1, 4, 4, 2]  # the trial run first
    assert torch.equal(samples["z"], given["z"])
    assert torch.equal(samples["_RETURN"], given["z"])
    assert Predictive(model, num_samples=10, parallel=True, chunk=3)()["z"].unique().numel() == 10


@BOTH
def test_runs_without_gradients_and_densities(parallel: bool) -> None:
    seen = []

    def model() -> None:
        loc = sumprod.param("loc", torch.tensor(1.0))
        seen.append((torch.is_grad_enabled(), handlers.get_mask()))
        sumprod.sample("z", dist.Normal(loc, 1.0))

    assert not Predictive(model, num_samples=2, parallel=parallel)()["z"].requires_grad
    assert seen[1:] == [(False, False)] * (1 if parallel else 2)
    assert torch.is_grad_enabled()


def test_call_returns_a_tuple_in_the_order_of_names() -> None:
    predictive = Predictive(MODEL, {"m": torch.randn(5)}, return_sites=("y", "m", "twice"))
    samples = predictive.call()
    assert isinstance(samples, tuple)
    assert [tuple(value.shape) for value in samples] == [(5, 1, 1), (5, 1, 1), (5, 3, 4, 2)]


def test_get_samples_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match=r"get_samples is deprecated"):
        samples = Predictive(MODEL, num_samples=2).get_samples()
    assert samples["m"].shape == (2, 1, 1)


def test_get_vectorized_trace() -> None:
    given = {"m": torch.randn(5)}
    trace = Predictive(MODEL, given).get_vectorized_trace()
    assert torch.equal(trace.nodes["m"]["value"], given["m"].reshape(5, 1, 1))
    assert trace.nodes["x"]["value"].shape == (5, 3, 4)
    assert "_num_predictive_samples" not in trace


def test_is_a_module_with_the_parameters_of_its_programs() -> None:
    linear = torch.nn.Linear(2, 1)
    predictive = Predictive(linear, num_samples=1)
    assert list(predictive.parameters()) == list(linear.parameters())


def test_deterministic_sites_in_plates() -> None:
    def model() -> None:
        with sumprod.plate("data", 3):
            z = sumprod.sample("z", dist.Normal(0.0, 1.0))
            sumprod.deterministic("wide", z + 1)
        sumprod.deterministic("total", z.sum(-1, keepdim=True))

    for parallel in (False, True):
        samples = Predictive(model, num_samples=5, parallel=parallel)()
        assert samples["wide"].shape == (5, 3)
        torch.testing.assert_close(samples["wide"], samples["z"] + 1)
        torch.testing.assert_close(samples["total"].flatten(), samples["z"].sum(-1))


def test_data_are_not_copied_for_each_sample() -> None:
    data = torch.zeros(3, 4)
    assert Predictive(MODEL, num_samples=100, return_sites=["x"])(data)["x"].untyped_storage().nbytes() == 48


def test_outer_handlers_act_but_see_no_trial_run() -> None:
    with handlers.condition(data={"m": torch.tensor(50.0)}):
        assert (Predictive(MODEL, num_samples=3)()["m"] == 50).all()


def test_one_site_may_be_named_by_a_string() -> None:
    assert list(Predictive(MODEL, num_samples=2, return_sites="x")()) == ["x"]


@BOTH
def test_unknown_return_sites_warn(parallel: bool) -> None:
    predictive = Predictive(MODEL, num_samples=2, return_sites=["m", "typo"], parallel=parallel)
    with pytest.warns(UserWarning, match=r"the model has no sites \['typo'\]; it has \['m', 'v', 'r'"):
        assert list(predictive()) == ["m"]


def test_number_of_samples() -> None:
    with pytest.raises(ValueError, match="Either posterior_samples or num_samples must be specified"):
        Predictive(MODEL)
    with pytest.raises(ValueError, match="Either posterior_samples or num_samples must be specified"):
        Predictive(MODEL, guide=GUIDE)
    with pytest.raises(ValueError, match="cannot be provided with the `guide` argument"):
        Predictive(MODEL, {"m": torch.zeros(3)}, guide=GUIDE)
    with pytest.raises(ValueError, match="No sample sites in posterior samples to infer"):
        Predictive(MODEL, {})
    assert Predictive(MODEL, {}, num_samples=4)()["m"].shape == (4, 1, 1)
    with pytest.warns(UserWarning, match=r"size 5 at site 'm' .* Defaulting to 5"):
        assert Predictive(MODEL, {"m": torch.zeros(5)}, num_samples=7).num_samples == 5
    with pytest.warns(UserWarning, match=r"size 6 at site 'v' .* Defaulting to 6"):
        Predictive(MODEL, {"m": torch.zeros(5), "v": torch.zeros(6, 2)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Predictive(MODEL, {"m": torch.zeros(5)}, num_samples=5).num_samples == 5
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        Predictive(MODEL, num_samples=0)
    with pytest.raises(ValueError, match="chunk must be positive, got 0"):
        Predictive(MODEL, num_samples=1, chunk=0)


def test_says_what_is_wrong_in_a_run() -> None:
    runs = iter(range(100))

    def growing() -> None:
        sumprod.sample("z", dist.Normal(torch.zeros(1 + next(runs) % 2), 1.0).to_event(1))

    def sometimes() -> None:
        if next(runs) % 2 == 0:
            sumprod.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(
        ValueError, match=r"site 'z' has different shapes in different runs: \[\(2,\), \(1,\)\]"
    ):
        Predictive(growing, num_samples=3)()
    runs = iter(range(100))
    with pytest.raises(ValueError, match="run 0 of the model has no site 'z'"):
        Predictive(sometimes, num_samples=3)()
    for options in ({}, {"parallel": True, "chunk": 1}):
        with pytest.raises(TypeError, match="the value of '_RETURN' is not a tensor but NoneType"):
            Predictive(growing, num_samples=2, return_sites=["_RETURN"], **options)()
    with pytest.raises(
        ValueError, match=r"the value of '_RETURN' has shape \(5, 5\) in a run for 5 samples, expected"
    ):
        Predictive(
            lambda: (
                sumprod.sample("a", dist.Normal(0.0, 1.0))[..., None]
                + sumprod.sample("b", dist.Normal(0.0, 1.0))
            ),
            num_samples=5,
            return_sites=["_RETURN"],
            parallel=True,
        )()
    with pytest.raises(ValueError, match="Shape mismatch inside plate"):
        Predictive(MODEL, {"m": torch.zeros(5), "r": torch.zeros(5, 7, 1)})()


def test_a_vectorized_run_may_return_what_is_not_a_tensor() -> None:
    def model() -> dict[str, Tensor]:
        return {"z": sumprod.sample("z", dist.Normal(0.0, 1.0))}

    samples = Predictive(model, num_samples=3, return_sites=["z", "_RETURN"], parallel=True)()
    assert torch.equal(samples["_RETURN"]["z"], samples["z"])


def test_data_of_another_size() -> None:
    posterior = {"loc": torch.full((8,), 100.0)}
    samples = Predictive(normal_model, posterior)(None, size=11)
    assert samples["x"].shape == (8, 11)
    assert (samples["x"] > 90).all()
    assert DATA.shape == (4,)
