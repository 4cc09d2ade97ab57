"""Gradient estimators of Gaussian models are unbiased, by quadrature that is exact for them, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import sumprod
from tests.programs.expectation import all_bits, assert_gradients_equal, hermite, number, quadrature_gradient

pytestmark = pytest.mark.usefixtures("double")

HEIGHTS = torch.tensor([0.4, 1.3, 0.8], dtype=torch.float64)
START = {"loc": 0.3, "log_scale": -0.5}


def gaussian(pyro: Any, normal: Any) -> Any:
    """A normal mean with normal data, which are conjugate."""
    dist = pyro.distributions

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(number(0.0), number(1.5)))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(mean, 0.5), obs=HEIGHTS)

    def guide() -> None:
        pyro.sample("mean", normal(pyro.param("loc"), pyro.param("log_scale").exp()))

    return model, guide


def gaussian_elbo(loc: Tensor, scale: Tensor) -> Tensor:
    """In closed form: expected log-likelihood minus the divergence from the prior."""
    likelihood = Normal(loc, 0.5).log_prob(HEIGHTS).sum() - 3 * scale.square() / (2 * 0.5**2)
    return likelihood - torch.distributions.kl_divergence(Normal(loc, scale), Normal(0.0, 1.5))


def gaussian_exact() -> tuple[float, dict[str, Tensor]]:
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}
    loss = -gaussian_elbo(leaves["loc"], leaves["log_scale"].exp())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceMeanField_ELBO"])
@pytest.mark.parametrize("particles", [1, 2])
def test_pathwise_gradients_of_a_conjugate_model(name: str, particles: int) -> None:
    """Three nodes integrate the quadratic integrand without error."""
    elbo = getattr(sumprod.infer, name)(num_particles=particles)
    actual_loss, actual = quadrature_gradient(sumprod, gaussian, START, elbo, draws=particles, count=3)
    loss, gradients = gaussian_exact()
    assert actual_loss == pytest.approx(loss, abs=1e-9)
    assert_gradients_equal(actual, gradients)


def test_score_function_gradients_of_a_conjugate_model() -> None:
    """The same guide declared not reparameterised: the values are nodes, given by replay."""

    def build(pyro: Any) -> Any:
        return gaussian(pyro, lambda loc, scale: pyro.distributions.Normal(loc, scale).has_rsample_(False))

    nodes, weights = hermite(8)
    model, guide = build(sumprod)
    leaves = {name: sumprod.param(name, torch.tensor(v)).unconstrained() for name, v in START.items()}
    totals = {name: torch.zeros(()) for name in leaves}
    for node, weight in zip(nodes, weights, strict=True):
        fixed = sumprod.poutine.trace(guide).get_trace()
        fixed.nodes["mean"]["value"] = (leaves["loc"] + leaves["log_scale"].exp() * node).detach()
        replayed = sumprod.poutine.replay(guide, trace=fixed)
        for leaf in leaves.values():
            leaf.grad = None
        sumprod.infer.Trace_ELBO().loss_and_grads(model, replayed)
        for name, leaf in leaves.items():
            totals[name] += weight * leaf.grad
    assert_gradients_equal(totals, gaussian_exact()[1])


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 2.0])
def test_renyi_gradients_of_a_conjugate_model(alpha: float) -> None:
    """Two particles; the reference differentiates the same quadrature of the bound itself."""
    elbo = sumprod.infer.RenyiELBO(alpha=alpha, num_particles=2)
    actual_loss, actual = quadrature_gradient(sumprod, gaussian, START, elbo, draws=2, count=12)
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}
    loc, scale = leaves["loc"], leaves["log_scale"].exp()
    nodes, weights = hermite(12)
    mean = loc + scale * nodes
    log_weight = Normal(number(0.0), 1.5).log_prob(mean) - Normal(loc, scale).log_prob(mean)
    log_weight = log_weight + Normal(mean.unsqueeze(-1), 0.5).log_prob(HEIGHTS).sum(-1)
    pairs = torch.stack(torch.broadcast_tensors(log_weight.unsqueeze(-1), log_weight), -1)
    bound = ((1 - alpha) * pairs).logsumexp(-1) - number(2.0).log()
    loss = -(weights.unsqueeze(-1) * weights * bound / (1 - alpha)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert actual_loss == pytest.approx(loss.item(), abs=1e-9)
    assert_gradients_equal(actual, dict(zip(leaves, gradients, strict=True)))


def test_pathwise_and_score_terms_together() -> None:
    """A coin that chooses the mean of a normal latent: E over both, each by its own estimator."""

    def build(pyro: Any, normal: Any) -> Any:
        dist = pyro.distributions

        def model() -> None:
            z = pyro.sample("z", dist.Bernoulli(number(0.3)))
            y = pyro.sample("y", dist.Normal(z, number(1.0)))
            pyro.sample("x", dist.Normal(y, 0.5), obs=number(0.9))

        def guide() -> None:
            z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("q")))
            pyro.sample("y", normal(pyro.param("loc") + pyro.param("shift") * z, number(0.7)))

        return model, guide

    params = {"q": 0.2, "loc": 0.1, "shift": 0.6}
    totals = {name: torch.zeros(()) for name in params}
    weight_of = Bernoulli(logits=number(params["q"]))
    for coin_value in all_bits():

        def with_coin(pyro: Any, normal: Any, value: Tensor = coin_value) -> Any:
            model, guide = build(pyro, normal)
            fixed = pyro.poutine.Trace()
            site = {"name": "z", "type": "sample", "value": value, "is_observed": False, "infer": {}}
            fixed.add_node("z", **site)
            return model, pyro.poutine.replay(guide, trace=fixed)

        elbo = sumprod.infer.Trace_ELBO()
        _, gradients = quadrature_gradient(sumprod, with_coin, params, elbo, draws=1, count=6)
        for name in params:
            totals[name] += weight_of.log_prob(coin_value).exp() * gradients[name]
    assert_gradients_equal(totals, coin_and_normal_exact(params))


def coin_and_normal_exact(params: dict[str, float]) -> dict[str, Tensor]:
    """Sum over the coin; Gaussian expectations in closed form."""
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    loss = torch.zeros(())
    q = Bernoulli(logits=leaves["q"])
    for z in all_bits():
        loc = leaves["loc"] + leaves["shift"] * z
        guide, prior = Normal(loc, 0.7), Normal(z, 1.0)
        likelihood = Normal(loc, 0.5).log_prob(number(0.9)) - 0.7**2 / (2 * 0.5**2)
        inner = likelihood - torch.distributions.kl_divergence(guide, prior)
        coins = Bernoulli(number(0.3)).log_prob(z) - q.log_prob(z)
        loss = loss - q.log_prob(z).exp() * (inner + coins)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))
