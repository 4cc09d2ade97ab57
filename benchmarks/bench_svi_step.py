"""One `SVI.step` of models with many scalar sites or parameters, against Pyro.

Time goes to handlers, the parameter store and the optimiser: the tensors are tiny.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.distributions import constraints

from _svi import Step, SviProgram, race_programs, stepper


def normal_sites(count: int, loss: str = "Trace_ELBO") -> Any:
    """`count` scalar latents and a guide with a location and a scale for each."""
    data = torch.linspace(-1.0, 1.0, count)

    def build(pyro: Any) -> Step:
        dist = pyro.distributions

        def model() -> None:
            latents = [pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)) for i in range(count)]
            with pyro.plate("data", count):
                pyro.sample("x", dist.Normal(torch.stack(latents), 1.0), obs=data)

        def guide() -> None:
            for i in range(count):
                loc = pyro.param(f"loc{i}", torch.tensor(0.1))
                scale = pyro.param(f"scale{i}", torch.tensor(0.5), constraint=constraints.positive)
                pyro.sample(f"z{i}", dist.Normal(loc, scale))

        return stepper(pyro, model, guide, getattr(pyro.infer, loss)())

    return build


def many_parameters(count: int) -> Any:
    """Parameters only: what is left besides the optimiser is one factor."""
    target = torch.linspace(-1.0, 1.0, count)

    def build(pyro: Any) -> Step:
        def zero() -> torch.Tensor:
            return torch.zeros(())

        def model() -> None:
            values = [pyro.param(f"p{i}", zero) for i in range(count)]
            pyro.factor("fit", -(torch.stack(values) - target).square().sum())

        return stepper(pyro, model, lambda: None, pyro.infer.Trace_ELBO())

    return build


def sequential_plate(count: int) -> Any:
    """The coin of the tutorials: one latent, observations in a Python loop."""
    flips = (torch.arange(count) % 3 != 0).float()

    def build(pyro: Any) -> Step:
        dist = pyro.distributions

        def model() -> None:
            fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
            for i in pyro.plate("flips", count):
                pyro.sample(f"x{i}", dist.Bernoulli(fairness), obs=flips[i])

        def guide() -> None:
            a = pyro.param("a", torch.tensor(15.0), constraint=constraints.positive)
            b = pyro.param("b", torch.tensor(15.0), constraint=constraints.positive)
            pyro.sample("fairness", dist.Beta(a, b))

        return stepper(pyro, model, guide, pyro.infer.Trace_ELBO())

    return build


def markov_chain(count: int) -> Any:
    """A random walk under noise, looped with `markov`."""
    data = torch.linspace(-1.0, 1.0, count).sin()

    def build(pyro: Any) -> Step:
        dist = pyro.distributions

        def model() -> None:
            z = torch.tensor(0.0)
            for t in pyro.markov(range(count)):
                z = pyro.sample(f"z{t}", dist.Normal(z, 0.3))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=data[t])

        def guide() -> None:
            loc = pyro.param("loc", data.clone())
            scale = pyro.param("scale", torch.ones(count), constraint=constraints.positive)
            for t in pyro.markov(range(count)):
                pyro.sample(f"z{t}", dist.Normal(loc[t], scale[t]))

        return stepper(pyro, model, guide, pyro.infer.Trace_ELBO())

    return build


PROGRAMS = (
    SviProgram("100 Normal sites, 200 parameters, Trace_ELBO", normal_sites(100), 2.5),
    SviProgram("20 Normal sites, 40 parameters, Trace_ELBO", normal_sites(20), 2.0),
    SviProgram("1 Normal site, 2 parameters, Trace_ELBO", normal_sites(1)),
    SviProgram("400 parameters, no latents", many_parameters(400), 3.0),
    SviProgram("20 Normal sites, TraceMeanField_ELBO", normal_sites(20, "TraceMeanField_ELBO")),
    SviProgram("sequential plate of 50 observations", sequential_plate(50)),
    SviProgram("markov loop of 30 steps", markov_chain(30)),
)

if __name__ == "__main__":
    sys.exit(race_programs("SVI.step: many sites, many parameters", __doc__ or "", PROGRAMS))
