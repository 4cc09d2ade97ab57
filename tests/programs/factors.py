"""Factors, deterministic sites, masks, scales and partly observed data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from tests.programs.support import Outcome, data_generator, fit, program, trace_of

TABLE = torch.randn(5, 3, generator=data_generator(21))
KNOWN = torch.rand(5, 3, generator=data_generator(22)) < 0.6


@program()
def regularised_by_factors(pyro: Any) -> Outcome:
    """Penalties as factors: a scalar one, one in a plate, and one in the guide."""
    dist = pyro.distributions

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
        pyro.factor("lasso", -w.abs().sum())
        with pyro.plate("rows", 5):
            pyro.factor("fit", -0.5 * (TABLE @ w - 1.0) ** 2)

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))
        pyro.factor("penalty", -0.01 * loc.square().sum(), has_rsample=True)

    outcome = fit(pyro, model, guide)
    return {**outcome, "guide": trace_of(pyro.poutine.trace(guide).get_trace())}


@program()
def deterministic_sites(pyro: Any) -> Outcome:
    """Recorded quantities: shapes with and without event dims, in plates, no density."""
    dist = pyro.distributions

    def model() -> Tensor:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.deterministic("b", a.exp())
        with pyro.plate("rows", 5, dim=-2), pyro.plate("columns", 3):
            x = pyro.sample("x", dist.Normal(a, 1.0))
            pyro.deterministic("square", x**2, event_dim=0)
            pyro.deterministic("shape", torch.zeros(5, 3, 2), event_dim=1)
            pyro.sample("obs", dist.Normal(x, 1.0), obs=TABLE)
        return pyro.deterministic("total", x.sum())

    trace = pyro.poutine.trace(model).get_trace()
    report = trace_of(trace)
    return {**report, "stochastic": list(trace.stochastic_nodes), "observed": list(trace.observation_nodes)}


@program()
def missing_data_by_mask(pyro: Any) -> Outcome:
    """Unknown cells are filled with zeros and masked out, so that they add nothing."""
    dist, poutine = pyro.distributions, pyro.poutine
    table = torch.where(KNOWN, TABLE, torch.tensor(0.0))

    def model() -> None:
        rows = pyro.plate("rows", 5, dim=-2)
        with rows:
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3), rows, poutine.mask(mask=KNOWN):
            pyro.sample("cell", dist.Normal(effect, 1.0), obs=table)

    def guide() -> None:
        with pyro.plate("rows", 5, dim=-2):
            pyro.sample("effect", dist.Normal(pyro.param("loc", torch.zeros(5, 1)), 0.2))

    return fit(pyro, model, guide)


@program()
def imputation_by_obs_mask(pyro: Any) -> Outcome:
    """`obs_mask` splits a site; the guide supplies the unobserved half."""
    dist = pyro.distributions

    def model() -> Tensor:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 5, dim=-2), pyro.plate("columns", 3):
            x = pyro.sample("x", dist.Normal(mean, 1.0), obs=TABLE, obs_mask=KNOWN)
            pyro.sample("y", dist.Normal(x, 1.0), obs=TABLE + 0.5)
        return x

    def guide() -> None:
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.2))
        with pyro.plate("rows", 5, dim=-2), pyro.plate("columns", 3):
            pyro.sample("x_unobserved", dist.Normal(pyro.param("x", torch.zeros(5, 3)), 0.3))

    outcome = fit(pyro, model, guide)
    return {**outcome, "model": trace_of(pyro.poutine.trace(model).get_trace()), "imputed": model().detach()}


@program()
def scales_multiply(pyro: Any) -> Outcome:
    """Nested scales, a plate's scale, and a scale that is a tensor, all at one site."""
    dist, poutine = pyro.distributions, pyro.poutine
    by_hand = torch.tensor([1.0, 2.0, 3.0])

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=0.5), pyro.plate("rows", 6, subsample=torch.tensor([1, 3, 5])):
            with poutine.scale(scale=3.0):
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))
            with poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("y", dist.Normal(z, 1.0), obs=torch.ones(3))

    def weighted() -> None:
        with poutine.scale(scale=by_hand), pyro.plate("rows", 3):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(3))

    total = poutine.trace(weighted).get_trace().log_prob_sum()
    return {**trace_of(poutine.trace(model).get_trace()), "weighted": {"sum": total}}


@program()
def masks_of_every_kind(pyro: Any) -> Outcome:
    """Masked distributions and handlers, scalar and tensor, nested, and entirely off."""
    dist, poutine = pyro.distributions, pyro.poutine
    half = torch.tensor([True, False, True, False])
    impossible = torch.tensor([0.5, -1.0, 0.5, 2.0])

    def model() -> None:
        with pyro.plate("rows", 4):
            with poutine.mask(mask=False):
                pyro.sample("off", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=True), poutine.mask(mask=half):
                pyro.sample("half", dist.Normal(0.0, 1.0))
            pyro.sample("own", dist.Normal(0.0, 1.0).mask(half))
            pyro.sample("none", dist.Normal(0.0, 1.0).mask(False), obs=torch.ones(4))
            pyro.sample(
                "bad", dist.Beta(2.0, 2.0, validate_args=False).expand([4]).mask(half), obs=impossible
            )

    return trace_of(poutine.trace(model).get_trace())


@program()
def masked_divergences(pyro: Any) -> Outcome:
    """Analytic divergences with masks and scales around model and guide sites alike."""
    dist, poutine = pyro.distributions, pyro.poutine
    half = torch.tensor([True, False, True, True])

    def model() -> None:
        with (
            pyro.plate("rows", 8, subsample=torch.tensor([0, 1, 2, 3])),
            poutine.mask(mask=half),
            poutine.scale(scale=0.25),
        ):
            z = pyro.sample("z", dist.Normal(torch.zeros(4, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(4, 2))

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(4, 2))
        scale = pyro.param("scale", torch.ones(4, 2), constraint=constraints.positive)
        with (
            pyro.plate("rows", 8, subsample=torch.tensor([0, 1, 2, 3])),
            poutine.mask(mask=half),
            poutine.scale(scale=0.25),
        ):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return fit(pyro, model, guide, loss=pyro.infer.TraceMeanField_ELBO())


@program()
def censored_survival_times(pyro: Any) -> Outcome:
    """Observed deaths by density, censored ones by a factor with the log survival function."""
    dist = pyro.distributions
    times = torch.tensor([1.0, 2.5, 0.7, 3.0, 3.0])
    died = torch.tensor([True, True, True, False, False])

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.plate("people", 5):
            with pyro.poutine.mask(mask=died):
                pyro.sample("death", dist.Exponential(rate), obs=times)
            pyro.factor("alive", torch.where(died, torch.zeros(5), -rate * times))

    def guide() -> None:
        a = pyro.param("a", torch.tensor(4.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(8.0), constraint=constraints.positive)
        pyro.sample("rate", dist.Gamma(a, b))

    return fit(pyro, model, guide, loss=pyro.infer.TraceMeanField_ELBO())
