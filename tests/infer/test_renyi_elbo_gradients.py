"""Gradients of `RenyiELBO`, and particles that are impossible."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod.infer import RenyiELBO
from tests.infer.renyi_programs import ALPHAS, bound, global_model, local_guide, local_model
from tests.programs.expectation import all_bits

# ---- gradients


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_pathwise_gradient_is_that_of_the_value(alpha: float, vectorize: bool, local: bool) -> None:
    """For reparameterised guides the weighted gradient is the derivative of the loss itself."""
    elbo = RenyiELBO(alpha, num_particles=4, vectorize_particles=vectorize, local_weights=local)
    local_guide()
    leaf = sumprod.param("loc").unconstrained()
    sumprod.set_rng_seed(0)
    elbo.loss_and_grads(local_model, local_guide)
    for i in range(3):
        with torch.no_grad():
            losses = []
            for step in (0.01, -0.01):
                leaf[i] += step
                sumprod.set_rng_seed(0)
                losses.append(elbo.loss(local_model, local_guide))
                leaf[i] -= step
        assert leaf.grad[i].item() == pytest.approx((losses[0] - losses[1]) / 0.02, abs=2e-3)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_score_terms(alpha: float) -> None:
    """sum_k v_k (grad log w_k with the draw fixed, plus score / (1 - alpha)) for a Bernoulli guide."""
    logits = torch.tensor(0.4)
    values = [torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0)]
    queue: list[Tensor] = []

    def model() -> None:
        z = sumprod.sample("z", dist.Bernoulli(0.3))
        sumprod.sample("x", dist.Normal(2.0 * z, 1.0), obs=torch.tensor(1.5))

    class Fixed(dist.Bernoulli):
        def sample(self, sample_shape: Any = ()) -> Tensor:
            return queue.pop(0)

    def guide() -> None:
        sumprod.sample("z", Fixed(logits=sumprod.param("logits", logits)))

    queue[:] = values
    loss = RenyiELBO(alpha, num_particles=3).loss_and_grads(model, guide)
    leaf = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    z = torch.stack(values).double()
    log_q = dist.Bernoulli(logits=leaf).log_prob(z)
    log_w = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(2.0 * z, 1.0).log_prob(torch.tensor(1.5)) - log_q
    weights = ((1 - alpha) * log_w).softmax(0).detach()
    surrogate = (weights * alpha / (1 - alpha) * log_q).sum()
    assert loss == pytest.approx(-bound(log_w.detach(), alpha).item(), rel=1e-5)
    expected = -torch.autograd.grad(surrogate, leaf)[0].item()
    assert sumprod.param("logits").unconstrained().grad.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_score_gradient_with_every_value_once_is_that_of_the_limit(alpha: float) -> None:
    """With particles in the guide's proportions: the gradient of log E_q[w^(1 - alpha)] / (1 - alpha)."""
    leaf = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    z = torch.stack(all_bits()).double()
    q = dist.Bernoulli(logits=leaf)
    log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(2.0 * z, 1.0).log_prob(torch.tensor(1.5))
    objective = torch.logsumexp((1 - alpha) * log_p + alpha * q.log_prob(z), 0) / (1 - alpha)
    expected = -torch.autograd.grad(objective, leaf)[0].item()
    queue = all_bits()  # logits 0: each value has probability 1/2

    class Fixed(dist.Bernoulli):
        def sample(self, sample_shape: Any = ()) -> Tensor:
            return queue.pop(0)

    def model() -> None:
        value = sumprod.sample("z", dist.Bernoulli(0.3))
        sumprod.sample("x", dist.Normal(2.0 * value, 1.0), obs=torch.tensor(1.5))

    def guide() -> None:
        sumprod.sample("z", Fixed(logits=sumprod.param("logits", torch.tensor(0.0))))

    RenyiELBO(alpha, num_particles=2).loss_and_grads(model, guide)
    assert sumprod.param("logits").unconstrained().grad.item() == pytest.approx(expected, abs=1e-6)


def test_score_and_entropy_parts_of_one_site_are_refused() -> None:
    class Partly(dist.Normal):
        def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            log_prob = self.log_prob(x)
            return dist.score_parts.ScoreParts(log_prob, log_prob, log_prob)

    def guide() -> None:
        with sumprod.plate("rows", 3):
            sumprod.sample("z", Partly(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="both a score and an entropy term, as 'z' in plate 'rows'"):
        RenyiELBO().loss_and_grads(local_model, guide)


@pytest.mark.parametrize("keep", [None, True])
def test_retain_graph_is_honoured(keep: bool | None) -> None:
    loc = torch.tensor(0.5, requires_grad=True)
    shared = loc.exp()

    def guide() -> None:
        sumprod.sample("g", dist.Normal(shared, 1.0))

    elbo = RenyiELBO(retain_graph=keep)
    elbo.loss_and_grads(global_model, guide)
    assert loc.grad is not None
    if keep:
        elbo.loss_and_grads(global_model, guide)
    else:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            elbo.loss_and_grads(global_model, guide)


# ---- impossible particles


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dead", [[True, False], [True, True]])
def test_impossible_particles_do_not_spoil_the_gradient(alpha: float, dead: list[bool]) -> None:
    queue = list(dead)

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("f", z * 0 + (-math.inf if queue.pop(0) else 0.0))

    def guide() -> None:
        sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.3)), 1.0))

    guide()
    loss = RenyiELBO(alpha, num_particles=2).loss_and_grads(model, guide)
    gradient = sumprod.param("loc").unconstrained().grad
    assert not math.isnan(loss)
    assert gradient is None or torch.isfinite(gradient)
    if alpha > 1 or all(dead):
        assert loss == math.inf
    else:
        assert math.isfinite(loss)
        assert gradient.abs() > 1e-4
