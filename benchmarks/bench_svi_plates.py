"""One `SVI.step` of hierarchical programs with plates, against Pyro."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from _svi import Step, SviProgram, race_programs, stepper

_DRAW = torch.Generator().manual_seed(2)
ROWS, GROUPS, FEATURES = 200, 10, 4
X = torch.randn(ROWS, FEATURES, generator=_DRAW)
GROUP = torch.arange(ROWS) % GROUPS
Y = X.sum(-1) + 0.3 * torch.randn(ROWS, generator=_DRAW)
LABELS = (torch.rand(ROWS, generator=_DRAW) < torch.sigmoid(X.sum(-1))).float()


def hierarchical_regression(subsample: int | None = None, loss: str = "Trace_ELBO") -> Any:
    """Slopes per group around a common one; rows possibly subsampled."""

    def build(pyro: Any) -> Step:
        dist = pyro.distributions

        def model() -> None:
            mu = pyro.sample("mu", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
            tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
            sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
            with pyro.plate("groups", GROUPS):
                slopes = pyro.sample("slopes", dist.Normal(mu, tau).to_event(1))
            with pyro.plate("rows", ROWS, subsample_size=subsample) as i:
                pyro.sample("y", dist.Normal((X[i] * slopes[GROUP[i]]).sum(-1), sigma), obs=Y[i])

        def guide() -> None:
            loc = pyro.param("mu_loc", torch.zeros(FEATURES))
            scale = pyro.param("mu_scale", 0.1 * torch.ones(FEATURES), constraint=constraints.positive)
            pyro.sample("mu", dist.Normal(loc, scale).to_event(1))
            for name in ("tau", "sigma"):
                pyro.sample(name, dist.LogNormal(pyro.param(f"{name}_loc", torch.zeros(())), 0.1))
            slopes = pyro.param("slopes_loc", torch.zeros(GROUPS, FEATURES))
            with pyro.plate("groups", GROUPS):
                pyro.sample("slopes", dist.Normal(slopes, 0.1).to_event(1))
            if subsample is not None:
                with pyro.plate("rows", ROWS, subsample_size=subsample):
                    pass

        return stepper(pyro, model, guide, getattr(pyro.infer, loss)())

    return build


def nested_plates(pyro: Any) -> Step:
    """Effects of rows and columns of a table, and of each cell."""
    dist = pyro.distributions
    table = torch.randn(20, 10, generator=torch.Generator().manual_seed(3))

    def model() -> None:
        rows, columns = pyro.plate("rows", 20, dim=-2), pyro.plate("columns", 10, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with rows, columns:
            cell = pyro.sample("cell", dist.Normal(a + b, 1.0))
            pyro.sample("x", dist.Normal(cell, 0.5), obs=table)

    def guide() -> None:
        rows, columns = pyro.plate("rows", 20, dim=-2), pyro.plate("columns", 10, dim=-1)
        with rows:
            pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.zeros(20, 1)), 0.1))
        with columns:
            pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.zeros(10)), 0.1))
        with rows, columns:
            pyro.sample("cell", dist.Normal(pyro.param("cell_loc", torch.zeros(20, 10)), 0.1))

    return stepper(pyro, scaled(pyro, model), guide, pyro.infer.Trace_ELBO())


def scaled(pyro: Any, model: Any) -> Any:
    """The model under a handler, as programs that scale their loss have it."""
    return pyro.poutine.scale(model, scale=0.01)


def logistic_regression(particles: int) -> Any:
    """Vectorised particles."""

    def build(pyro: Any) -> Step:
        dist = pyro.distributions

        def model() -> None:
            w = pyro.sample("w", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
            with pyro.plate("rows", ROWS, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=(X * w).sum(-1)), obs=LABELS)

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(FEATURES))
            scale = pyro.param("scale", 0.1 * torch.ones(FEATURES), constraint=constraints.positive)
            pyro.sample("w", dist.Normal(loc, scale).to_event(1))

        loss = pyro.infer.Trace_ELBO(
            num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
        )
        return stepper(pyro, model, guide, loss)

    return build


def score_function_mixture(pyro: Any) -> Step:
    """Assignments sampled in a plate, three components, two looped particles."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=data)

    def guide(data: Tensor) -> None:
        c = pyro.param("c", torch.ones(3), constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(c))
        with pyro.plate("components", 3):
            pyro.sample("locs", dist.Normal(pyro.param("locs_loc", torch.tensor([-1.0, 0.0, 1.0])), 0.2))
        probs = pyro.param("probs", torch.ones(len(data), 3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(probs))

    loss = pyro.infer.Trace_ELBO(num_particles=2)
    return stepper(pyro, model, guide, loss, args=(Y,))


def masked_and_scaled(pyro: Any) -> Step:
    """Missing cells, an annealed divergence, a clipped optimiser."""
    dist, poutine = pyro.distributions, pyro.poutine
    known = torch.rand(50, 4, generator=torch.Generator().manual_seed(4)) < 0.7
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(5))

    def model() -> None:
        with pyro.plate("columns", 4, dim=-1):
            with poutine.scale(scale=0.3):
                effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 50, dim=-2), poutine.mask(mask=known):
                pyro.sample("x", dist.Normal(effect, 1.0), obs=table)

    def guide() -> None:
        with pyro.plate("columns", 4, dim=-1), poutine.scale(scale=0.3):
            pyro.sample("effect", dist.Normal(pyro.param("loc", torch.zeros(4)), 0.2))

    optim = pyro.optim.ClippedAdam({"lr": 1e-3, "clip_norm": 10.0})
    return stepper(pyro, model, guide, pyro.infer.Trace_ELBO(), optim)


PROGRAMS = (
    SviProgram("hierarchical regression, Trace_ELBO", hierarchical_regression()),
    SviProgram(
        "hierarchical regression, TraceMeanField_ELBO", hierarchical_regression(loss="TraceMeanField_ELBO")
    ),
    SviProgram("hierarchical regression, 20 of 200 rows", hierarchical_regression(20)),
    SviProgram("nested plates, 20 by 10", nested_plates),
    SviProgram("logistic regression, one particle", logistic_regression(1)),
    SviProgram("logistic regression, 10 vectorised particles", logistic_regression(10)),
    SviProgram("score-function mixture, 200 rows, 2 particles", score_function_mixture),
    SviProgram("masks, scales, ClippedAdam", masked_and_scaled),
)

if __name__ == "__main__":
    sys.exit(race_programs("SVI.step: programs with plates", __doc__ or "", PROGRAMS))
