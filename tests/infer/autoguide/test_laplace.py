"""The Laplace approximation, against curvatures known exactly."""

from __future__ import annotations

import pytest
import torch

import sumprod
from sumprod.distributions import Beta, Gamma, MultivariateNormal, Normal
from sumprod.infer import SVI, Trace_ELBO
from sumprod.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, init_to_value
from sumprod.optim import Adam


def test_it_is_exact_for_a_gaussian() -> None:
    covariance = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    mean = torch.tensor([1.0, -2.0, 0.5])

    def model() -> None:
        sumprod.sample("x", MultivariateNormal(mean, covariance))

    guide = AutoLaplaceApproximation(model, init_to_value(values={"x": mean}))
    normal = guide.laplace_approximation()
    assert isinstance(normal, AutoMultivariateNormal)
    posterior = normal.get_posterior()
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.covariance_matrix, covariance, rtol=1e-4, atol=1e-5)


def test_the_curvature_is_that_on_the_real_line() -> None:
    """With x = e^u, a Gamma(a, b) density has log-density a u - b e^u: mode log(a/b), curvature -a."""
    a, b = 4.0, 2.0

    def model() -> None:
        sumprod.sample("x", Gamma(a, b))

    guide = AutoLaplaceApproximation(model, init_to_value(values={"x": a / b}))
    posterior = guide.laplace_approximation().get_posterior()
    assert posterior.mean.item() == pytest.approx(torch.tensor(a / b).log().item(), abs=1e-5)
    assert posterior.variance.item() == pytest.approx(1 / a, rel=1e-4)


def test_training_finds_the_mode_and_the_fit_is_fixed() -> None:
    def model() -> None:
        with sumprod.plate("data", 3):
            p = sumprod.sample("p", Beta(2.0, 2.0))
        sumprod.sample("x", Normal(p.sum(), 1.0), obs=torch.tensor(1.5))

    guide = AutoLaplaceApproximation(model)
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    # On the real line Beta(2, 2) has its mode at 1/2, and so has the data.
    torch.testing.assert_close(guide.median()["p"], torch.full((3,), 0.5), atol=1e-3, rtol=0)
    before = list(sumprod.get_param_store().keys())
    normal = guide.laplace_approximation()
    assert list(normal.parameters()) == []
    assert list(normal.state_dict()) == ["loc", "scale", "scale_tril"]
    assert normal()["p"].shape == (3,)
    assert normal.quantiles([0.1, 0.9])["p"].shape == (2, 3)
    assert list(sumprod.get_param_store().keys()) == before
    # d2/du2 of 2 log p + 2 log (1 - p) is -4 p (1 - p) = -1; of -(sum p - 1.5)^2 / 2 it is -(p (1 - p))^2.
    precision = torch.eye(3) + torch.full((3, 3), 1 / 16)
    torch.testing.assert_close(
        normal.get_posterior().covariance_matrix, precision.inverse(), rtol=1e-2, atol=1e-3
    )


def test_before_the_mode_there_may_be_no_normal() -> None:
    def model() -> None:
        x = sumprod.sample("x", Normal(0.0, 1.0))
        sumprod.factor("bimodal", 4 * x.square() - x.pow(4))

    guide = AutoLaplaceApproximation(model, init_to_value(values={"x": 0.0}))
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"at the 1 values of 'AutoLaplaceApproximation\.loc' is not negative"
    ):
        guide.laplace_approximation()


def test_a_direction_without_curvature_is_refused() -> None:
    def model() -> None:
        x = sumprod.sample("x", Normal(torch.zeros(2), 1.0).to_event(1).mask(False))
        sumprod.factor("slope", x[0])

    guide = AutoLaplaceApproximation(model, init_to_value(values={"x": 0.0}))
    with pytest.raises(torch.linalg.LinAlgError, match="no normal fits"):
        guide.laplace_approximation()


def test_quantiles_are_those_of_the_approximation() -> None:
    guide = AutoLaplaceApproximation(lambda: sumprod.sample("x", Normal(0.0, 1.0)))
    with pytest.raises(NotImplementedError, match=r"use the quantiles of the guide that it returns"):
        guide.quantiles([0.5])
