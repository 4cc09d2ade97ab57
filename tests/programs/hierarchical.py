"""Groups within groups: nested, subsampled, sequential and stacked plates."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributions import constraints

from tests.programs.support import Draws, Outcome, data_generator, fit, params_of, program, trace_of

SCHOOL_EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOL_ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
TABLE = torch.randn(12, 4, generator=data_generator(3)) + torch.arange(4.0)


@program()
def eight_schools(pyro: Any) -> Outcome:
    """Rubin's eight schools in the non-centred form, analytic divergences."""
    dist = pyro.distributions

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("obs", dist.Normal(theta, SCHOOL_ERRORS), obs=SCHOOL_EFFECTS)

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(10))
        scale = pyro.param("scale", torch.ones(10), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc[0], scale[0]))
        pyro.sample("tau", dist.LogNormal(loc[1], scale[1]))
        with pyro.plate("schools", 8):
            pyro.sample("eta", dist.Normal(loc[2:], scale[2:]))

    return fit(pyro, model, guide, loss=pyro.infer.TraceMeanField_ELBO(num_particles=2))


@program()
def nested_plates(pyro: Any) -> Outcome:
    """Row and column effects that cross; every site in one, two or no plates."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        rows, columns = pyro.plate("rows", 12, dim=-2), pyro.plate("columns", 4, dim=-1)
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with rows:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 3.0))
        with rows, columns:
            pyro.sample("obs", dist.Normal(a + b, scale), obs=data)

    def guide(data: torch.Tensor) -> None:
        pyro.sample("scale", dist.Gamma(pyro.param("k", torch.tensor(2.0)), torch.tensor(2.0)))
        with pyro.plate("rows", 12, dim=-2):
            pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.zeros(12, 1)), 0.1))
        with pyro.plate("columns", 4, dim=-1):
            pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.zeros(4)), 0.1))

    outcome = fit(pyro, model, guide, TABLE)
    return {**outcome, "model": trace_of(pyro.poutine.trace(model).get_trace(TABLE))}


@program()
def subsampled_plate(pyro: Any) -> Outcome:
    """Three of twelve rows at a time; the guide shares the indices by replay."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1))
        with pyro.plate("rows", len(data), subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(z, 0.5).to_event(1), obs=data[index])

    def guide(data: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(12, 4))
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.zeros(4)), 0.1).to_event(1))
        with pyro.plate("rows", len(data), subsample_size=3) as index:
            pyro.sample("z", dist.Normal(loc[index], 0.1).to_event(1))

    return fit(pyro, model, guide, TABLE, optim=pyro.optim.SGD({"lr": 1e-3}))


@program()
def minibatches_of_data_in_plate(pyro: Any) -> Outcome:
    """`pyro.subsample` and parameters with event_dim pick the batch out of full-size tensors."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        with pyro.plate("columns", 4, dim=-1), pyro.plate("rows", 12, subsample_size=5, dim=-2):
            batch = pyro.subsample(data, event_dim=0)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=batch)

    def guide(data: torch.Tensor) -> None:
        with pyro.plate("columns", 4, dim=-1), pyro.plate("rows", 12, subsample_size=5, dim=-2):
            loc = pyro.param("loc", lambda: torch.zeros(12, 4), event_dim=0)
            scale = pyro.param("s", lambda: torch.ones(12, 1), constraint=constraints.positive, event_dim=0)
            pyro.sample("z", dist.Normal(loc, scale))

    return fit(pyro, model, guide, TABLE)


@program()
def two_subsampled_plates(pyro: Any) -> Outcome:
    """Both dims of a table subsampled: scales multiply; the trace shows sizes and scales."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        columns = pyro.plate("columns", 4, subsample_size=2, dim=-1)
        rows = pyro.plate("rows", 12, subsample_size=3, dim=-2)
        with rows as i:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with columns as j:
                pyro.sample("obs", dist.Normal(a, 1.0), obs=data[i][:, j])

    def guide(data: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(12, 1))
        with pyro.plate("rows", 12, subsample_size=3, dim=-2) as i:
            pyro.sample("a", dist.Normal(loc[i], 1.0))

    outcome = fit(pyro, model, guide, TABLE, loss=pyro.infer.TraceMeanField_ELBO())
    return {**outcome, "model": trace_of(pyro.poutine.trace(model).get_trace(TABLE))}


@program()
def sequential_plates(pyro: Any) -> Outcome:
    """Loops instead of tensors: a plate in a plate, the inner one subsampled by hand."""
    dist = pyro.distributions

    def model(data: torch.Tensor) -> None:
        for j in pyro.plate("columns", 4):
            mean = pyro.sample(f"mean_{j}", dist.Normal(0.0, 1.0))
            for i in pyro.plate(f"rows_{j}", 12, subsample=[0, 5, 7]):
                pyro.sample(f"obs_{i}_{j}", dist.Normal(mean, 1.0), obs=data[i, j])

    def guide(data: torch.Tensor) -> None:
        for j in pyro.plate("columns", 4):
            loc = pyro.param(f"loc_{j}", torch.tensor(0.0))
            pyro.sample(f"mean_{j}", dist.Normal(loc, 0.5))

    return fit(pyro, model, guide, TABLE, loss=pyro.infer.Trace_ELBO(num_particles=2))


@program()
def vectorised_plate_in_a_sequential_one(pyro: Any) -> Outcome:
    """Ragged groups: a loop over groups, tensors inside, subsampled with a random subset."""
    dist = pyro.distributions
    groups = [torch.randn(n, generator=data_generator(n)) for n in (3, 5, 4)]

    def model() -> None:
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        for i in pyro.plate("groups", len(groups)):
            mean = pyro.sample(f"mean_{i}", dist.Normal(top, 1.0))
            with pyro.plate(f"data_{i}", len(groups[i]), subsample_size=2) as index:
                pyro.sample(f"obs_{i}", dist.Normal(mean, 1.0), obs=groups[i][index])

    def guide() -> None:
        locs = pyro.param("locs", torch.zeros(4))
        pyro.sample("top", dist.Normal(locs[3], 0.3))
        for i in pyro.plate("groups", len(groups)):
            pyro.sample(f"mean_{i}", dist.Normal(locs[i], 0.3))

    return fit(pyro, model, guide)


@program()
def plate_stacks(pyro: Any) -> Outcome:
    """Names and dims of `plate_stack`, a decorator plate, and broadcasting to all of them."""
    dist = pyro.distributions

    @pyro.plate("copies", 2, dim=-3)
    def inner() -> torch.Tensor:
        return pyro.sample("c", dist.Normal(0.0, 1.0))

    def model() -> torch.Tensor:
        with pyro.plate_stack("grid", (3, 4)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            inner()
        with pyro.plate_stack("left", (2, 3), rightmost_dim=-2):
            b = pyro.sample("b", dist.Bernoulli(0.5).expand([2, 3, 1]))
        return a.sum() + b.sum()

    return trace_of(pyro.poutine.trace(model).get_trace())


@program()
def subset_indices(pyro: Any) -> Outcome:
    """Which rows a subsampled plate picks: each row equally often, each pair equally often."""

    def model() -> torch.Tensor:
        with pyro.plate("rows", 6, subsample_size=2) as index:
            return index

    drawn = torch.stack([model() for _ in range(1500)])
    codes = drawn.sort(-1).values @ torch.tensor([6, 1])
    same = pyro.plate("again", 6, subsample_size=3)
    with same as first:
        pass
    with same as second:
        pass
    full = pyro.plate("full", 3, subsample_size=3)
    with full as all_of_them:
        pass
    return {
        "pairs": Draws(codes),
        "first": Draws(drawn[:, 0]),
        "repeated": bool((first == second).all()),
        "full": all_of_them,
    }


@program()
def plate_without_size(pyro: Any) -> Outcome:
    """A plate that only declares a dim; a varying-intercept regression on top of it."""
    dist = pyro.distributions
    county = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    radon = torch.tensor([0.4, 0.1, 1.2, 1.4, -0.3, -0.1, 0.2])

    def model() -> None:
        mu, sigma = pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("counties", 3):
            alpha = pyro.sample("alpha", dist.Normal(mu, sigma))
        with pyro.plate("homes"):
            pyro.sample("radon", dist.Normal(alpha[county], 0.3), obs=radon)

    def guide() -> None:
        pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.zeros(())), 0.2))
        pyro.sample("sigma", dist.LogNormal(pyro.param("sigma_loc", torch.zeros(())), 0.2))
        with pyro.plate("counties", 3):
            pyro.sample("alpha", dist.Normal(pyro.param("alpha_loc", torch.zeros(3)), 0.2))

    outcome = fit(pyro, model, guide)
    return {
        **outcome,
        "model": trace_of(pyro.poutine.trace(model).get_trace()),
        "names": list(params_of(pyro)),
    }
