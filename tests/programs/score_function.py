"""Discrete latents without enumeration: the score function estimator, plain and in plates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from tests.programs.support import Outcome, data_generator, fit, params_of, program, trace_of

POINTS = torch.cat(
    [torch.randn(6, generator=data_generator(1)) - 2.0, torch.randn(6, generator=data_generator(2)) + 2.0]
)


@program()
def mixture_of_two_normals(pyro: Any) -> Outcome:
    """Assignments in a plate: each row's score is weighted by that row's cost and the global one."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 5.0 * torch.ones(2)).to_event(1))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(weight))
            pyro.sample("obs", dist.Normal(locs[z.long()], 1.0), obs=data)

    def guide(data: Tensor) -> None:
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("weight", dist.Beta(a, 2.0))
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        pyro.sample("locs", dist.Normal(loc, 0.1).to_event(1))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(data)))))

    return fit(pyro, model, guide, POINTS, loss=pyro.infer.Trace_ELBO(num_particles=2))


@program()
def mixture_in_minibatches(pyro: Any) -> Outcome:
    """Categorical assignments, subsampled rows, a Dirichlet over weights."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(data), subsample_size=5) as i:
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[z], 1.0), obs=data[i])

    def guide(data: Tensor) -> None:
        c = pyro.param("c", torch.ones(3), constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(c))
        with pyro.plate("components", 3):
            pyro.sample("locs", dist.Normal(pyro.param("l", torch.tensor([-1.0, 0.0, 1.0])), 0.2))
        probs = pyro.param("probs", torch.ones(len(data), 3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(data), subsample_size=5) as i:
            pyro.sample("z", dist.Categorical(probs[i]))

    return fit(pyro, model, guide, POINTS)


@program()
def mixture_with_vectorised_renyi(pyro: Any) -> Outcome:
    """The same kind of mixture under Renyi's bound: score terms weighted by importance."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("obs", dist.Normal(4.0 * z - 2.0, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(data)))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    loss = pyro.infer.RenyiELBO(alpha=0.3, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    return fit(pyro, model, guide, POINTS, loss=loss)


@program()
def nested_discrete_plates(pyro: Any) -> Outcome:
    """Scores at two levels of plates; costs are summed over the plates that a site is not in."""
    dist = pyro.distributions
    data = torch.poisson(3.0 * torch.ones(3, 4), generator=data_generator(4))

    def model() -> None:
        busy = pyro.sample("busy", dist.Bernoulli(0.3))
        with pyro.plate("days", 4, dim=-1):
            rain = pyro.sample("rain", dist.Bernoulli(0.2 + 0.5 * busy))
            with pyro.plate("shops", 3, dim=-2):
                sale = pyro.sample("sale", dist.Bernoulli(0.4).expand([3, 4]))
                pyro.sample("visits", dist.Poisson(1.0 + rain + 2.0 * sale), obs=data)

    def guide() -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("busy", dist.Bernoulli(p))
        with pyro.plate("days", 4, dim=-1):
            rain = pyro.sample("rain", dist.Bernoulli(logits=pyro.param("r", torch.zeros(4))))
            with pyro.plate("shops", 3, dim=-2):
                logits = pyro.param("s", torch.zeros(3, 4)) + 0.1 * rain
                pyro.sample("sale", dist.Bernoulli(logits=logits))

    return fit(pyro, model, guide, loss=pyro.infer.Trace_ELBO(num_particles=3))


@program()
def poisson_latents_in_sequential_plates(pyro: Any) -> Outcome:
    """Unbounded counts as latents (no enumeration is possible), one loop per group."""
    dist = pyro.distributions
    caught = torch.tensor([2.0, 0.0, 4.0])

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        for i in pyro.plate("ponds", 3):
            n = pyro.sample(f"n_{i}", dist.Poisson(rate))
            pyro.sample(f"caught_{i}", dist.Poisson(0.5 * n + 0.1), obs=caught[i])

    def guide() -> None:
        pyro.sample(
            "rate", dist.Gamma(pyro.param("a", torch.tensor(3.0), constraint=constraints.positive), 1.0)
        )
        for i in pyro.plate("ponds", 3):
            q = pyro.param(f"q_{i}", torch.tensor(2.0), constraint=constraints.positive)
            pyro.sample(f"n_{i}", dist.Poisson(q))

    return fit(pyro, model, guide, optim=pyro.optim.RMSprop({"lr": 0.01}))


@program()
def switching_regression_with_a_network(pyro: Any) -> Outcome:
    """Discrete and continuous latents together, their guide's logits from a network."""
    dist = pyro.distributions
    x = torch.linspace(-1.0, 1.0, 10)
    y = torch.where(x > 0, 2.0 * x, -x)
    gate = nn.Linear(1, 2)

    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 10):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("y", dist.Normal(slope[k] * x, 0.2), obs=y)

    def guide() -> None:
        pyro.module("gate", gate)
        pyro.sample("slope", dist.Normal(pyro.param("m", torch.tensor([1.0, -1.0])), 0.1).to_event(1))
        with pyro.plate("data", 10):
            pyro.sample("k", dist.Categorical(logits=gate(x.unsqueeze(-1))))

    return fit(pyro, model, guide, steps=8)


@program()
def score_parts_of_a_guide(pyro: Any) -> Outcome:
    """What a custom estimator reads: the three score parts of each kind of site, scaled and masked."""
    dist, poutine = pyro.distributions, pyro.poutine

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(3))
        mask = torch.tensor([True, False, True])
        with pyro.plate("data", 6, subsample=torch.tensor([0, 2, 4])), poutine.mask(mask=mask):
            pyro.sample("pathwise", dist.Normal(loc, 1.0))
            pyro.sample("score", dist.Bernoulli(logits=loc))
            pyro.sample("forced", dist.Normal(loc, 1.0).has_rsample_(False))

    trace = poutine.trace(guide).get_trace()
    trace.compute_score_parts()
    parts = {
        name: [torch.as_tensor(part).detach() * 1.0 for part in trace.nodes[name]["score_parts"]]
        for name in ("pathwise", "score", "forced")
    }
    return {
        "parts": parts,
        "trace": trace_of(trace),
        "pathwise": list(trace.reparameterized_nodes),
        "score": sorted(trace.nonreparam_stochastic_nodes),
        "params": params_of(pyro),
    }
