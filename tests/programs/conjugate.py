"""Models with a conjugate prior, fitted by a hand-written guide of the exact family."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributions import constraints

from tests.programs.support import Outcome, data_generator, fit, program, trace_of

HEIGHTS = torch.tensor([1.2, 0.7, 2.1, 1.6, 0.9, 1.4])
FLIPS = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
COUNTS = torch.tensor([3.0, 0.0, 2.0, 5.0, 1.0])


@program()
def normal_normal(pyro: Any) -> Outcome:
    """Unknown mean, known noise; one loss per step and the final traces of model and guide."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> torch.Tensor:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=data)
        return mean

    def guide(data: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))

    outcome = fit(pyro, model, guide, HEIGHTS, steps=30)
    guide_trace = pyro.poutine.trace(guide).get_trace(HEIGHTS)
    model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(HEIGHTS)
    return {**outcome, "guide": trace_of(guide_trace), "model": trace_of(model_trace)}


@program()
def normal_with_unknown_precision(pyro: Any) -> Outcome:
    """Two latents in the global scope, one of them a Gamma with pathwise gradients."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        mean = pyro.sample("mean", dist.Normal(0.0, (3.0 * precision).rsqrt()))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=data)

    def guide(data: torch.Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(3.0), constraint=constraints.positive)
        rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
        pyro.sample("precision", dist.Gamma(shape, rate))
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(())), pyro.param("s", torch.ones(()))))

    return fit(pyro, model, guide, HEIGHTS, loss=pyro.infer.Trace_ELBO(num_particles=3))


@program()
def beta_bernoulli_sequential(pyro: Any) -> Outcome:
    """The coin of the first tutorial: observations in a Python loop over a sequential plate."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        for i in pyro.plate("flips", len(data)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(fairness), obs=data[i])

    def guide(data: torch.Tensor) -> None:
        alpha = pyro.param("alpha_q", torch.tensor(15.0), constraint=constraints.positive)
        beta = pyro.param("beta_q", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("fairness", dist.Beta(alpha, beta))

    optim = pyro.optim.Adam({"lr": 0.005, "betas": (0.90, 0.999)})
    return fit(pyro, model, guide, FLIPS, optim=optim)


@program()
def beta_bernoulli_mean_field(pyro: Any) -> Outcome:
    """The same posterior through the analytic divergence between two Betas."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        with pyro.plate("coins", 3):
            fairness = pyro.sample("fairness", dist.Beta(2.0, 2.0))
            with pyro.plate("flips", len(data)):
                pyro.sample("obs", dist.Bernoulli(fairness), obs=data[:, None].expand(-1, 3))

    def guide(data: torch.Tensor) -> None:
        concentration = pyro.param("ab", 2.0 * torch.ones(2, 3), constraint=constraints.positive)
        with pyro.plate("coins", 3):
            pyro.sample("fairness", dist.Beta(concentration[0], concentration[1]))

    return fit(pyro, model, guide, FLIPS, loss=pyro.infer.TraceMeanField_ELBO())


@program()
def gamma_poisson(pyro: Any) -> Outcome:
    """Rates of counts, one per row, in a vectorised plate; AdagradRMSProp."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        with pyro.plate("rows", len(data), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
            pyro.sample("count", dist.Poisson(rate), obs=data)

    def guide(data: torch.Tensor) -> None:
        a = pyro.param("a", torch.ones(len(data)), constraint=constraints.positive)
        b = pyro.param("b", torch.ones(len(data)), constraint=constraints.greater_than(0.1))
        with pyro.plate("rows", len(data), dim=-1):
            pyro.sample("rate", dist.Gamma(a, b))

    return fit(pyro, model, guide, COUNTS, optim=pyro.optim.AdagradRMSProp({"eta": 0.5}))


@program()
def gamma_exponential_score_function(pyro: Any) -> Outcome:
    """The guide's Gamma is declared not reparameterised, so the score function estimator is used."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("wait", dist.Exponential(rate), obs=data)

    def guide(data: torch.Tensor) -> None:
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("rate", dist.Gamma(a, torch.tensor(1.0)).has_rsample_(False))

    return fit(pyro, model, guide, HEIGHTS, loss=pyro.infer.Trace_ELBO(num_particles=4))


@program()
def dirichlet_categorical(pyro: Any) -> Outcome:
    """Proportions of three colours, with simplex-valued sites and a positive vector parameter."""
    dist = pyro.distributions
    draws = torch.tensor([0, 2, 1, 1, 1, 0, 1])

    def model(data: torch.Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([1.0, 2.0, 1.0])))
        with pyro.plate("draws", len(data)):
            pyro.sample("colour", dist.Categorical(share), obs=data)

    def guide(data: torch.Tensor) -> None:
        concentration = pyro.param("c", 2.0 * torch.ones(3), constraint=constraints.positive)
        pyro.sample("share", dist.Dirichlet(concentration))

    return fit(pyro, model, guide, draws, loss=pyro.infer.TraceMeanField_ELBO(num_particles=2))


@program()
def multivariate_normal_mean(pyro: Any) -> Outcome:
    """Mean of a Gaussian with full covariance, with a Cholesky factor as parameter."""
    dist = pyro.distributions
    data = torch.randn(20, 3, generator=data_generator()) + torch.tensor([1.0, 0.0, -1.0])
    noise = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.2, 0.1, 0.5]])

    def model() -> None:
        mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.MultivariateNormal(mean, scale_tril=noise), obs=data)

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(3))
        tril = pyro.param("tril", 0.5 * torch.eye(3), constraint=constraints.lower_cholesky)
        pyro.sample("mean", dist.MultivariateNormal(loc, scale_tril=tril))

    return fit(pyro, model, guide)
