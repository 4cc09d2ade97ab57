"""Automatic guides under the constructors and parameter names of Pyro 0.3."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.contrib import autoguide
from sumprod.contrib.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    init_to_mean,
)
from sumprod.distributions import Gamma, MultivariateNormal, Normal
from sumprod.infer import SVI, Trace_ELBO
from sumprod.infer import autoguide as current
from sumprod.optim import Adam


def model() -> None:
    sumprod.sample("m", Normal(3.0, 1.0))
    with sumprod.plate("a", 3):
        sumprod.sample("s", Gamma(2.0, 2.0))
    sumprod.sample("net.w", Normal(torch.zeros(2), 1.0).to_event(1))


NAMES = {
    AutoDelta: {"_m": (), "_s": (3,), "_net.w": (2,)},
    AutoDiagonalNormal: {"_loc": (6,), "_scale": (6,)},
    AutoMultivariateNormal: {"_loc": (6,), "_scale_tril": (6, 6)},
    AutoLowRankMultivariateNormal: {"_loc": (6,), "_cov_factor": (6, 1), "_cov_diag": (6,)},
    AutoLaplaceApproximation: {"_loc": (6,)},
}


@pytest.mark.parametrize("prefix", ["auto", "mine"])
@pytest.mark.parametrize("family", NAMES)
def test_trap_43_parameters_are_named_by_the_prefix(family: Any, prefix: str) -> None:
    guide = family(model) if prefix == "auto" else family(model, prefix=prefix)
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    svi.step()
    store = sumprod.get_param_store()
    shapes = {name: tuple(value.shape) for name, value in store.items()}
    assert shapes == {prefix + name: shape for name, shape in NAMES[family].items()}
    latent = [name for name in handlers.trace(guide).get_trace().nodes if name.endswith("_latent")]
    assert latent == ([] if family is AutoDelta else [f"_{prefix}_latent"])
    assert isinstance(guide, autoguide.AutoGuide)
    assert isinstance(guide, current.AutoGuide)


def test_guides_start_with_unit_scales() -> None:
    for family in (AutoDiagonalNormal, AutoMultivariateNormal):
        posterior = family(model, "auto", init_to_mean)
        posterior()
        torch.testing.assert_close(posterior.get_posterior().variance, torch.ones(6))
        assert posterior.median()["m"].item() == 3.0
    guide = AutoLowRankMultivariateNormal(model, "auto", init_to_mean, 4)
    guide()
    assert guide.cov_diag.tolist() == pytest.approx([0.5] * 6)
    assert guide.cov_factor.shape == (6, 4)


def test_quantiles_use_the_marginal_deviations() -> None:
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]])

    def gaussian() -> None:
        sumprod.sample("x", MultivariateNormal(torch.zeros(2), covariance))

    guide = AutoMultivariateNormal(gaussian, init_loc_fn=init_to_mean)
    guide()
    guide.scale_tril = torch.linalg.cholesky(covariance)
    up = guide.quantiles([0.8413447])["x"][0]
    torch.testing.assert_close(up, covariance.diagonal().sqrt(), rtol=1e-4, atol=1e-4)
    low_rank = AutoLowRankMultivariateNormal(gaussian, init_loc_fn=init_to_mean, rank=2)
    low_rank()
    up = low_rank.quantiles([0.8413447])["x"][0]
    torch.testing.assert_close(up, low_rank.get_posterior().variance.sqrt(), rtol=1e-4, atol=1e-4)


def test_parts_of_a_list_keep_their_prefixes() -> None:
    guide = AutoGuideList(model)
    guide.add(AutoDelta(handlers.block(model, expose=["m"]), prefix="point"))
    guide.add(AutoDiagonalNormal(handlers.block(model, hide=["m"])))
    assert list(guide()) == ["m", "s", "net.w"]
    assert list(sumprod.get_param_store()) == ["point_m", "auto_loc", "auto_scale"]


def test_the_two_constructors_are_told_apart() -> None:
    with pytest.raises(TypeError, match=r"Expected prefix to be a str, got .*init_to_mean"):
        AutoDelta(model, init_to_mean)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected rank > 0 but got 0"):
        AutoLowRankMultivariateNormal(model, rank=0)


def test_the_laplace_approximation() -> None:
    guide = AutoLaplaceApproximation(lambda: sumprod.sample("x", Normal(2.0, 3.0)), init_loc_fn=init_to_mean)
    posterior = guide.laplace_approximation().get_posterior()
    assert (posterior.mean.item(), posterior.variance.item()) == pytest.approx((2.0, 9.0), rel=1e-4)
