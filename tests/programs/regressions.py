"""Linear, logistic, Poisson, robust and softmax regression."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributions import constraints

from tests.programs.support import Outcome, data_generator, fit, params_of, program

_generator = data_generator(11)
FEATURES = torch.randn(30, 3, generator=_generator)
TRUE_WEIGHTS = torch.tensor([1.0, -2.0, 0.5])
RESPONSES = FEATURES @ TRUE_WEIGHTS + 0.3 * torch.randn(30, generator=_generator)
LABELS = (torch.rand(30, generator=_generator) < torch.sigmoid(FEATURES @ TRUE_WEIGHTS)).float()
COUNTS = torch.poisson((FEATURES @ (0.3 * TRUE_WEIGHTS)).exp(), generator=_generator)
CLASSES = torch.randint(0, 4, (30,), generator=_generator)


def weights_guide(pyro: Any) -> None:
    """An independent Normal for the weight vector called "w"."""
    loc = pyro.param("w_loc", torch.zeros(3))
    scale = pyro.param("w_scale", 0.3 * torch.ones(3), constraint=constraints.positive)
    pyro.sample("w", pyro.distributions.Normal(loc, scale).to_event(1))


@program()
def linear(pyro: Any) -> Outcome:
    """Weights, bias and noise scale; LogNormal guide for the scale; two particles."""
    dist = pyro.distributions

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = x @ w + b
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        weights_guide(pyro)
        pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.tensor(0.1)), 0.2))
        sigma_loc = pyro.param("sigma_loc", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("sigma", dist.Normal(sigma_loc, torch.tensor(0.05)))

    return fit(pyro, model, guide, FEATURES, RESPONSES, loss=pyro.infer.Trace_ELBO(num_particles=2))


@program()
def logistic_vectorised_particles(pyro: Any) -> Outcome:
    """Ten particles as an outermost plate, nesting given."""
    dist = pyro.distributions

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=(x * w).sum(-1)), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        weights_guide(pyro)

    loss = pyro.infer.Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    outcome = fit(pyro, model, guide, FEATURES, LABELS, loss=loss, steps=10)
    return {**outcome, "nesting": loss.max_plate_nesting}


@program()
def logistic_guessed_nesting(pyro: Any) -> Outcome:
    """Vectorised particles with the nesting left for the library to find; gradients in the same direction.

    The libraries may draw from the generator while guessing, so only things that no draw can change are
    compared: the nesting found and the parameters' names.
    """
    dist = pyro.distributions

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 30):
            pyro.sample("y", dist.Bernoulli(logits=w * FEATURES[:, 0]), obs=LABELS)

    def guide() -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), 0.1))

    loss = pyro.infer.Trace_ELBO(num_particles=4, vectorize_particles=True)
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss).step()
    return {"nesting": loss.max_plate_nesting, "names": list(params_of(pyro))}


@program()
def poisson(pyro: Any) -> Outcome:
    """Counts with a log link; the divergence from the prior is analytic."""
    dist = pyro.distributions

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0 * torch.ones(3)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("count", dist.Poisson((x @ w).exp()), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        weights_guide(pyro)

    return fit(pyro, model, guide, FEATURES, COUNTS, loss=pyro.infer.TraceMeanField_ELBO())


@program()
def robust(pyro: Any) -> Outcome:
    """Student's t noise whose degrees of freedom are a latent Gamma."""
    dist = pyro.distributions

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
        df = pyro.sample("df", dist.Gamma(2.0, 0.1))
        scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.StudentT(df, x @ w, scale), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        weights_guide(pyro)
        df = pyro.param("df_loc", torch.tensor(1.0))
        pyro.sample("df", dist.LogNormal(df, torch.tensor(0.1)))
        pyro.sample("scale", dist.LogNormal(pyro.param("scale_loc", torch.tensor(-1.0)), torch.tensor(0.1)))

    optim = pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 5.0, "lrd": 0.99})
    return fit(pyro, model, guide, FEATURES, RESPONSES, optim=optim)


@program()
def softmax_with_renyi(pyro: Any) -> Outcome:
    """Four classes, weights as a matrix in two event dims, Renyi's bound of order one half."""
    dist = pyro.distributions

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 4), torch.ones(3, 4)).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(3, 4))
        positive = dist.constraints.softplus_positive
        scale = pyro.param("scale", lambda: 0.2 * torch.ones(3, 4), constraint=positive)
        pyro.sample("w", dist.Normal(loc, scale).to_event(2))

    loss = pyro.infer.RenyiELBO(alpha=0.5, num_particles=5)
    return fit(pyro, model, guide, FEATURES, CLASSES, loss=loss, steps=10)


@program()
def importance_weighted_bound(pyro: Any) -> Outcome:
    """RenyiELBO at order zero with vectorised particles, latents in a plate: one weight per row."""
    dist = pyro.distributions

    def model(y: torch.Tensor) -> None:
        with pyro.plate("rows", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(y)))
        with pyro.plate("rows", len(y), dim=-1):
            pyro.sample("z", dist.Normal(loc, 0.7))

    loss = pyro.infer.RenyiELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    return fit(pyro, model, guide, RESPONSES, loss=loss)


@program()
def ordinary_least_squares_by_point_estimates(pyro: Any) -> Outcome:
    """No latent at all: parameters in the model, an empty guide."""
    dist = pyro.distributions

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.param("w", torch.zeros(3))
        b = pyro.param("b", torch.zeros(1))
        sigma = pyro.param("sigma", torch.ones(1), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w + b, sigma), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        pass

    return fit(pyro, model, guide, FEATURES, RESPONSES, optim=pyro.optim.SGD({"lr": 0.001, "momentum": 0.9}))
