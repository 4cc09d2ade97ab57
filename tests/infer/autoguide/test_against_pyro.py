"""Programs run with automatic guides under Pyro and under the library, from equal seeds.

Names of parameters, losses, parameters, medians and quantiles must agree, and so must the random streams
afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sumprod
import sumprod.infer.autoguide

peer = pytest.importorskip("pyro", reason="pyro-ppl is the peer; it comes with the test extra")
import pyro.infer.autoguide  # noqa: E402

Library = Any  # the module `sumprod` or the module `pyro`


# ---- programs


def nested(pyro: Library) -> Callable[..., Any]:
    """Nested plates, six kinds of support, a dotted name, a bound that depends on another site."""
    dist = pyro.distributions

    def model() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("a", 3, dim=-1):
            s = pyro.sample("s", dist.Gamma(2.0, 2.0))
            with pyro.plate("b", 4, dim=-2):
                x = pyro.sample("x", dist.Normal(m, s))
                pyro.sample("d", dist.Dirichlet(torch.ones(3)))
                pyro.sample("y", dist.Normal(x, 1.0), obs=torch.arange(12.0).reshape(4, 3) / 3)
        u = pyro.sample("u", dist.Uniform(0.0, 2.0))
        pyro.sample("lin.w", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.sample("e", dist.Exponential(u))

    return model


def subsampled(pyro: Library) -> Callable[..., Any]:
    """Local sites in one and in two subsampled plates."""
    dist = pyro.distributions

    def model() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("p", 10, subsample_size=4, dim=-2):
            with pyro.plate("q", 6, subsample_size=3, dim=-1):
                pyro.sample("x", dist.LogNormal(m, 1.0))
            pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0))

    return model


def multivariate(pyro: Library) -> Callable[..., Any]:
    """Supports whose dimension on the real line differs, inside and outside plates."""
    dist = pyro.distributions

    def model() -> None:
        pyro.sample("C", dist.LKJCholesky(3, 1.0))
        with pyro.plate("p", 2):
            pyro.sample("d", dist.Dirichlet(torch.ones(2, 4)))
            pyro.sample("b", dist.Beta(torch.ones(3), 1.0).to_event(1))

    return model


def logistic(pyro: Library) -> Callable[..., Any]:
    dist = pyro.distributions
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    y = (x.sum(-1) > 0).float()

    def model() -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(3), scale.unsqueeze(-1)).to_event(1))
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Bernoulli(logits=(x * w).sum(-1)), obs=y)

    return model


PROGRAMS = {f.__name__: f for f in (nested, subsampled, multivariate, logistic)}


# ---- guides


def simple(name: str) -> Callable[..., Any]:
    return lambda pyro, model: getattr(pyro.infer.autoguide, name)(model)


def initialised(name: str, strategy: str) -> Callable[..., Any]:
    def make(pyro: Library, model: Any) -> Any:
        ag = pyro.infer.autoguide
        return getattr(ag, name)(model, init_loc_fn=getattr(ag, strategy))

    return make


def scaled(pyro: Library, model: Any) -> Any:
    return pyro.infer.autoguide.AutoNormal(model, init_scale=0.5)


def low_rank(pyro: Library, model: Any) -> Any:
    return pyro.infer.autoguide.AutoLowRankMultivariateNormal(model, rank=3, init_scale=0.3)


def composed(pyro: Library, model: Any) -> Any:
    ag, block = pyro.infer.autoguide, pyro.poutine.block
    first = "C" if model.__qualname__.startswith("multivariate") else "m"
    first = "scale" if model.__qualname__.startswith("logistic") else first
    guide = ag.AutoGuideList(model)
    guide.append(ag.AutoDelta(block(model, expose=[first])))
    guide.append(ag.AutoNormal(block(model, hide=[first])))
    return guide


GUIDES = {
    "delta": simple("AutoDelta"),
    "normal": simple("AutoNormal"),
    "diagonal": simple("AutoDiagonalNormal"),
    "multivariate": simple("AutoMultivariateNormal"),
    "low rank": simple("AutoLowRankMultivariateNormal"),
    "laplace": simple("AutoLaplaceApproximation"),
    "normal, from samples": initialised("AutoNormal", "init_to_sample"),
    "normal, from medians": initialised("AutoNormal", "init_to_median"),
    "diagonal, from means": initialised("AutoDiagonalNormal", "init_to_mean"),
    "delta, from uniform": initialised("AutoDelta", "init_to_uniform"),
    "normal, wide": scaled,
    "low rank, given": low_rank,
    "list": composed,
}

PARTICLES: dict[str, dict[str, Any]] = {
    "one": {},
    "three": {"num_particles": 3},
    "three at once": {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2},
}


def run(pyro: Library, program: str, guide: str, particles: str) -> dict[str, Any]:
    """What four steps of SVI give, and what the guide says after them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own code, and our note on packed subsamples
        model = PROGRAMS[program](pyro)
        q = GUIDES[guide](pyro, model)
        loss = pyro.infer.Trace_ELBO(**PARTICLES[particles])
        svi = pyro.infer.SVI(model, q, pyro.optim.Adam({"lr": 0.05}), loss)
        result: dict[str, Any] = {"losses": torch.tensor([svi.step() for _ in range(4)])}
        result["names"] = list(pyro.get_param_store().keys())
        result["stream"] = torch.rand(()).item()
        result.update(pyro.get_param_store().items())
        medians = (
            {}
            if guide == "laplace" or (guide.startswith("delta") and program == "subsampled")
            else q.median()
        )
        result.update({f"median of {name}": value for name, value in medians.items()})
        if guide.split(",")[0] in ("normal", "diagonal", "multivariate", "low rank"):
            quantiles = q.quantiles([0.2, 0.5, 0.9])
            result.update({f"quantiles of {name}": value for name, value in quantiles.items()})
    return result


CASES = [(program, guide, "one") for program in PROGRAMS for guide in GUIDES]
CASES += [("nested", guide, "three at once") for guide in GUIDES]
CASES.remove(("multivariate", "diagonal, from means", "one"))  # LKJCholesky has no mean
CASES += [("logistic", guide, "three") for guide in ("normal", "multivariate", "list")]


@pytest.mark.parametrize(("program", "guide", "particles"), CASES)
def test_guides_give_the_same_numbers(program: str, guide: str, particles: str) -> None:
    expected, found = (run(library, program, guide, particles) for library in (pyro, sumprod))
    assert list(found) == list(expected)
    assert found.pop("names") == expected.pop("names")
    assert found.pop("stream") == expected.pop("stream")
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        torch.testing.assert_close(found[key], value, rtol=2e-4, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_plates_made_by_the_user_give_the_same_numbers() -> None:
    def program(pyro: Library) -> list[Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        dist = pyro.distributions
        data = torch.arange(8.0)

        def model(data: torch.Tensor) -> None:
            with pyro.plate("data", 8, subsample_size=3, dim=-1) as i:
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=data[i])

        def create_plates(data: torch.Tensor) -> Any:
            return pyro.plate("data", 8, subsample_size=3, dim=-1)

        guide = pyro.infer.autoguide.AutoNormal(model, create_plates=create_plates)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        losses = [svi.step(data) for _ in range(10)]
        return [torch.tensor(losses), *(v.detach() for _, v in sorted(pyro.get_param_store().items()))]

    for expected, found in zip(program(pyro), program(sumprod), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_laplace_approximation_gives_the_same_numbers() -> None:
    def program(pyro: Library) -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        model = logistic(pyro)
        guide = pyro.infer.autoguide.AutoLaplaceApproximation(model)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
        for _ in range(200):
            svi.step()
        normal = guide.laplace_approximation()
        assert list(normal.named_parameters()) == []
        result = {name: value.detach() for name, value in normal.quantiles([0.1, 0.5]).items()}
        result["covariance"] = normal.get_posterior().covariance_matrix.detach()
        result.update(normal())
        return result

    found = program(sumprod)
    for name, expected in program(pyro).items():
        torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-4)
