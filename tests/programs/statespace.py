"""Time series written as loops, with and without `markov`, none of it enumerated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from tests.programs.support import Outcome, data_generator, fit, program, trace_of

LEVELS = torch.randn(12, generator=data_generator(9)).cumsum(0)
RETURNS = 0.3 * torch.randn(10, generator=data_generator(10))


@program()
def local_level(pyro: Any) -> Outcome:
    """A random walk under noise, looped with `markov`; analytic divergences do not apply step by step."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        drift = pyro.sample("drift", dist.LogNormal(-1.0, 0.5))
        z = torch.tensor(0.0)
        for t in pyro.markov(range(len(data))):
            z = pyro.sample(f"z_{t}", dist.Normal(z, drift))
            pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=data[t])

    def guide(data: Tensor) -> None:
        locs = pyro.param("locs", data.clone())
        scales = pyro.param("scales", 0.3 * torch.ones(len(data)), constraint=constraints.positive)
        pyro.sample("drift", dist.LogNormal(pyro.param("d", torch.tensor(-1.0)), 0.1))
        for t in pyro.markov(range(len(data))):
            pyro.sample(f"z_{t}", dist.Normal(locs[t], scales[t]))

    return fit(pyro, model, guide, LEVELS)


@program()
def stochastic_volatility(pyro: Any) -> Outcome:
    """Persistent log variance; particles in a loop; learning rate falls by a scheduler."""
    dist = pyro.distributions

    def model() -> None:
        phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
        h = pyro.sample("h_0", dist.Normal(0.0, 1.0))
        for t in range(len(RETURNS)):
            h = pyro.sample(f"h_{t + 1}", dist.Normal(phi * h, 0.3))
            pyro.sample(f"r_{t}", dist.Normal(0.0, (0.5 * h).exp()), obs=RETURNS[t])

    def guide() -> None:
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        squash = dist.transforms.AffineTransform(-1.0, 2.0)
        pyro.sample("phi", dist.TransformedDistribution(dist.Beta(a, 1.0), [squash]))
        locs = pyro.param("locs", torch.zeros(len(RETURNS) + 1))
        for t in range(len(RETURNS) + 1):
            pyro.sample(f"h_{t}", dist.Normal(locs[t], 0.2))

    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8})
    svi = pyro.infer.SVI(model, guide, optim, pyro.infer.Trace_ELBO(num_particles=2))
    losses = []
    for _ in range(10):
        losses.append(svi.step())
        optim.step()
    return {"losses": losses, "loc": pyro.param("locs").detach(), "a": pyro.param("a").detach()}


@program()
def hidden_markov_model_by_score_function(pyro: Any) -> Outcome:
    """A chain of sampled states in a plate of sequences, history of one."""
    dist = pyro.distributions
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    sequences = torch.randn(3, 5, generator=data_generator(6)) + 1.0

    def model() -> None:
        locs = pyro.param("locs", torch.tensor([0.0, 1.0]))
        with pyro.plate("sequences", 3, dim=-1):
            state: Any = 0
            for t in pyro.markov(range(5)):
                state = pyro.sample(f"s_{t}", dist.Categorical(transition[state]))
                pyro.sample(f"x_{t}", dist.Normal(locs[state], 0.5), obs=sequences[:, t])

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(3, 5, 2))
        with pyro.plate("sequences", 3, dim=-1):
            for t in pyro.markov(range(5)):
                pyro.sample(f"s_{t}", dist.Categorical(logits=logits[:, t]))

    return fit(pyro, model, guide, loss=pyro.infer.Trace_ELBO(num_particles=2))


@program()
def ragged_sequences_with_masks(pyro: Any) -> Outcome:
    """A deep Markov model over padded sequences; `poutine.mask` leaves the padding out."""
    dist, poutine = pyro.distributions, pyro.poutine
    series = torch.randn(3, 4, 2, generator=data_generator(12))
    lengths = torch.tensor([4, 2, 3])
    move, emit, back = nn.Linear(2, 2), nn.Linear(2, 2), nn.GRU(2, 4, batch_first=True)
    read = nn.Linear(4, 2)

    def model() -> None:
        pyro.module("move", move)
        pyro.module("emit", emit)
        z = pyro.param("start", torch.zeros(2)).expand(3, 2)
        with pyro.plate("series", 3, dim=-1):
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(move(z), 0.5).to_event(1))
                    pyro.sample(f"x_{t}", dist.Normal(emit(z), 1.0).to_event(1), obs=series[:, t])

    def guide() -> None:
        pyro.module("back", back)
        pyro.module("read", read)
        hidden, _ = back(series)
        with pyro.plate("series", 3, dim=-1):
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Normal(read(hidden[:, t]), 0.4).to_event(1))

    losses = fit(pyro, model, guide, steps=5)
    other = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.TraceMeanField_ELBO())
    return {**losses, "mean field": [other.step() for _ in range(3)]}


@program()
def autoregression_by_forecasting(pyro: Any) -> Outcome:
    """Fit on the past, then run the same model on: sites of the future have no data."""
    dist = pyro.distributions

    def model(data: Tensor, horizon: int) -> Tensor:
        coefficient = pyro.sample("coefficient", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        x, path = data[0], [data[0]]
        for t in range(1, horizon):
            seen = data[t] if t < len(data) else None
            x = pyro.sample(f"x_{t}", dist.Normal(coefficient * x, sigma), obs=seen)
            path.append(x)
        return torch.stack(path)

    guide = pyro.infer.autoguide.AutoNormal(model)
    outcome = fit(pyro, model, guide, LEVELS, len(LEVELS), steps=10)
    with pyro.poutine.trace() as traced:
        path = model(LEVELS, len(LEVELS) + 3)
    return {**outcome, "path": path.detach(), "trace": trace_of(traced.trace)}
