"""`Trace_ELBO` has unbiased gradients: exact expectations over everything that the guide can draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO
from tests.programs.expectation import (
    Case,
    Values,
    all_bits,
    exact_gradient,
    expected_gradient,
    quadrature_gradient,
)

AUXILIARY = {"is_auxiliary": True}


def assert_unbiased(case: Case, elbo: Any = None) -> None:
    loss, gradients = exact_gradient(case)
    actual_loss, actual = expected_gradient(sumprod, case, elbo or Trace_ELBO())
    assert actual_loss == pytest.approx(loss, abs=1e-9)
    for name, expected in gradients.items():
        assert torch.allclose(actual[name], expected, rtol=1e-9, atol=1e-9), (name, actual[name], expected)


def nested_plates() -> Case:
    """Coins at three depths, a mask in the middle, and a site after the plates that sees their sum."""
    data = torch.tensor([[0.1, 1.2], [2.3, -0.3]], dtype=torch.float64)

    def model() -> None:
        g = sumprod.sample("g", dist.Bernoulli(torch.tensor(0.6)))
        with sumprod.plate("rows", 2, dim=-2):
            a = sumprod.sample("a", dist.Bernoulli(0.2 + 0.5 * g))
            with sumprod.plate("columns", 2, dim=-1):
                sumprod.sample("x", dist.Normal(g + 2.0 * a, 1.0), obs=data)
        sumprod.sample("y", dist.Normal(a.sum(), 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        g = sumprod.sample("g", dist.Bernoulli(logits=sumprod.param("qg")))
        with sumprod.plate("rows", 2, dim=-2):
            sumprod.sample("a", dist.Bernoulli(logits=sumprod.param("qa").unsqueeze(-1) + 0.3 * g))

    def log_q(p: Values, v: Values) -> Tensor:
        rows = dist.Bernoulli(logits=p["qa"].unsqueeze(-1) + 0.3 * v["g"]).log_prob(v["a"]).sum()
        return dist.Bernoulli(logits=p["qg"]).log_prob(v["g"]) + rows

    def elbo(p: Values, v: Values) -> Tensor:
        g, a = v["g"], v["a"]
        coins = dist.Bernoulli(0.6).log_prob(g) + dist.Bernoulli(0.2 + 0.5 * g).log_prob(a).sum()
        seen = dist.Normal(g + 2.0 * a, 1.0).log_prob(data).sum()
        total = dist.Normal(a.sum(), 1.0).log_prob(torch.tensor(1.0))
        return coins + seen + total - log_q(p, v)

    params = {"qg": 0.3, "qa": [0.1, -0.2]}
    return Case(
        "nested", lambda _: (model, guide), params, {"g": all_bits(), "a": all_bits(2, 1)}, elbo, log_q
    )


def auxiliary_in_a_plate() -> Case:
    """Auxiliary coins in a plate that the latent coins depend on."""

    def model() -> None:
        with sumprod.plate("rows", 2):
            z = sumprod.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            sumprod.sample("x", dist.Normal(2.0 * z, 1.0), obs=torch.tensor([1.5, -0.2]))

    def guide() -> None:
        with sumprod.plate("rows", 2):
            a = sumprod.sample("a", dist.Bernoulli(logits=sumprod.param("qa")), infer=AUXILIARY)
            sumprod.sample("z", dist.Bernoulli(logits=sumprod.param("qz") + 2.0 * a))

    def log_q(p: Values, v: Values) -> Tensor:
        second = dist.Bernoulli(logits=p["qz"] + 2.0 * v["a"]).log_prob(v["z"])
        return (dist.Bernoulli(logits=p["qa"]).log_prob(v["a"]) + second).sum()

    def elbo(p: Values, v: Values) -> Tensor:
        likelihood = dist.Normal(2.0 * v["z"], 1.0).log_prob(torch.tensor([1.5, -0.2]))
        return (dist.Bernoulli(torch.tensor(0.3)).log_prob(v["z"]) + likelihood).sum() - log_q(p, v)

    params = {"qa": [1.5, 0.1], "qz": [-0.4, 0.6]}
    support = {"a": all_bits(2), "z": all_bits(2)}
    return Case("auxiliary", lambda _: (model, guide), params, support, elbo, log_q)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("make", [nested_plates, auxiliary_in_a_plate])
@pytest.mark.parametrize("particles", [1, 2])
def test_score_function_gradients(make: Callable[[], Case], particles: int) -> None:
    """Trap 20, and plates inside plates. Two particles get the same values here: the mean is the same."""
    assert_unbiased(make(), Trace_ELBO(num_particles=particles))


@pytest.mark.usefixtures("double")
def test_auxiliary_site_that_nothing_depends_on_has_the_gradient_of_its_entropy() -> None:
    """Trap 20, by hand: d/dq of -H(q), which an R without -log q of auxiliary sites makes 0."""

    def guide() -> None:
        sumprod.sample("a", dist.Bernoulli(sumprod.param("q")), infer=AUXILIARY)

    def model() -> None:
        pass

    q, total = 0.7, 0.0
    for value in (0.0, 1.0):
        sumprod.clear_param_store()
        sumprod.param("q", torch.tensor(q), constraint=constraints.unit_interval)
        fixed = handlers.trace(guide).get_trace()
        fixed.nodes["a"]["value"] = torch.tensor(value)
        Trace_ELBO().loss_and_grads(model, handlers.replay(guide, trace=fixed))
        weight = q if value else 1 - q
        total += weight * sumprod.param("q").unconstrained().grad.item()
    assert total == pytest.approx((math.log(q) - math.log(1 - q)) * q * (1 - q))


@pytest.mark.usefixtures("double")
def test_score_and_entropy_parts_of_one_site_both_contribute() -> None:
    """A draw z = loc + scale * e whose pathwise part sees `scale` alone; the score supplies `loc`.

    The exact gradient of E[-log N(z; 0, 1) + log q(z)] is that of KL(q || prior).
    """

    def build(pyro: Any, normal: Any) -> Any:
        class Partly(normal):  # type: ignore[misc]
            def rsample(self, sample_shape: Any = ()) -> Tensor:
                z: Tensor = super().rsample(sample_shape)
                return z - self.loc + self.loc.detach()

            def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
                density = dist.Normal(self.loc, self.scale)
                score = dist.Normal(self.loc, self.scale.detach()).log_prob(x.detach())
                return dist.score_parts.ScoreParts(density.log_prob(x), score, density.log_prob(x))

        def model() -> None:
            pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))

        def guide() -> None:
            pyro.sample("z", Partly(pyro.param("loc"), pyro.param("log_scale").exp()))

        return model, guide

    start = {"loc": 0.4, "log_scale": -0.3}
    loss, actual = quadrature_gradient(sumprod, build, start, Trace_ELBO(), draws=1, count=12)
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    kl = torch.distributions.kl_divergence(
        dist.Normal(leaves["loc"], leaves["log_scale"].exp()), dist.Normal(0.0, 1.0)
    )
    expected = torch.autograd.grad(kl, list(leaves.values()))
    assert loss == pytest.approx(kl.item())
    # log q contributes d/dloc of E[log q] = 0 pathwise, by the entropy part, besides the score.
    assert [g.item() for g in actual.values()] == pytest.approx([g.item() for g in expected])


def test_rao_blackwellisation_keeps_plate_elements_apart() -> None:
    """The cost of one row does not enter the score of another: rows with gradient zero have it exactly.

    Row 0 has an uninformative likelihood and a guide equal to its prior, so every sample of its cost is 0.
    """
    sumprod.param("q", torch.zeros(2))

    def model() -> None:
        with sumprod.plate("rows", 2):
            z = sumprod.sample("z", dist.Bernoulli(0.5))
            sumprod.sample("x", dist.Normal(torch.tensor([0.0, 3.0]) * z, 1.0), obs=torch.tensor([0.0, 2.0]))
            sumprod.factor("f", torch.tensor([0.5 * math.log(2 * math.pi), 0.0]))

    def guide() -> None:
        with sumprod.plate("rows", 2):
            sumprod.sample("z", dist.Bernoulli(logits=sumprod.param("q")))

    for _ in range(3):
        Trace_ELBO().loss_and_grads(model, guide)
    gradient = sumprod.param("q").unconstrained().grad
    assert abs(gradient[0]) < 1e-6
    assert abs(gradient[1]) > 1e-2


@pytest.mark.parametrize("vectorize", [True, False])
def test_mean_gradients_of_drawn_particles(vectorize: bool) -> None:
    """End to end, with real draws: Bernoulli and Normal latents, a subsampled plate and an auxiliary site.

    The particles are 2000 or, one by one, 400; 5 standard errors of 4 numbers fail once in 400000 seeds.
    """
    data = torch.tensor([0.3, 1.5, -0.7, 2.0])

    def model() -> None:
        c = sumprod.sample("c", dist.Bernoulli(0.3))
        m = sumprod.sample("m", dist.Normal(c, 1.0))
        with sumprod.plate("rows", 4, subsample_size=2) as i:
            sumprod.sample("x", dist.Normal(m, 2.0), obs=data[i])

    def guide() -> None:
        a = sumprod.sample(
            "a", dist.Bernoulli(logits=sumprod.param("qa", torch.tensor(0.5))), infer=AUXILIARY
        )
        c = sumprod.sample("c", dist.Bernoulli(logits=sumprod.param("qc", torch.tensor(0.2)) + a))
        loc = sumprod.param("loc", torch.tensor(0.1))
        scale = sumprod.param("log_scale", torch.tensor(-0.5)).exp()
        sumprod.sample("m", dist.Normal(loc + 0.5 * c, scale))

    guide()
    leaves = {name: sumprod.param(name).unconstrained() for name in ("qa", "qc", "loc", "log_scale")}
    params = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    loss: Any = 0.0
    for a in (0.0, 1.0):
        for c in (0.0, 1.0):
            qa, qc = dist.Bernoulli(logits=params["qa"]), dist.Bernoulli(logits=params["qc"] + a)
            log_q = qa.log_prob(torch.tensor(a).double()) + qc.log_prob(torch.tensor(c).double())
            loc, scale = params["loc"] + 0.5 * c, params["log_scale"].exp()
            q, prior = dist.Normal(loc, scale), dist.Normal(torch.tensor(c).double(), 1.0)
            likelihood = dist.Normal(loc, 2.0).log_prob(data).sum() - 4 * scale**2 / (2 * 2.0**2)
            inner = likelihood - torch.distributions.kl_divergence(q, prior)
            inner = inner + dist.Bernoulli(0.3).log_prob(torch.tensor(c)) - log_q
            loss = loss - log_q.exp() * inner
    exact = torch.stack(torch.autograd.grad(loss, list(params.values())))
    torch.manual_seed(11)
    batches, size = (200, 10) if vectorize else (200, 2)
    elbo = Trace_ELBO(num_particles=size, vectorize_particles=vectorize, max_plate_nesting=1)
    draws = []
    for _ in range(batches):
        for leaf in leaves.values():
            leaf.grad = None
        elbo.loss_and_grads(model, guide)
        draws.append(torch.stack([leaf.grad for leaf in leaves.values()]))
    gradients = torch.stack(draws).double()
    errors = gradients.std(0) / math.sqrt(batches)
    assert (errors < 0.3).all()
    assert ((gradients.mean(0) - exact).abs() < 5 * errors).all(), (gradients.mean(0), exact, errors)
