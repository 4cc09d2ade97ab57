"""One `SVI.step` of a mixture of 10 normals, 10,000 points, assignments summed out, against Pyro.

Weights, means and scales are parameters, or have priors and point estimates (AutoDelta). The points are
numbers, or vectors of 8 with independent components.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from _enum import Parts, Workload, race_workloads

POINTS, COMPONENTS, SIZE = 10_000, 10, 8
AT_LEAST = 2.0


def points(*shape: int) -> Tensor:
    """Points around as many centres as there are components."""
    draw = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(COMPONENTS, *shape[1:], generator=draw)
    which = torch.randint(COMPONENTS, shape[:1], generator=draw)
    return centres[which] + torch.randn(*shape, generator=draw)


def of_parameters(data: Tensor) -> Callable[[Any], Parts]:
    """Numbers; everything but the assignments is a parameter."""

    def parts(pyro: Any) -> Parts:
        dist = pyro.distributions

        def model(data: Tensor) -> None:
            weights = pyro.param("weights", torch.full((COMPONENTS,), 0.1), constraint=constraints.simplex)
            means = pyro.param("means", torch.linspace(-6.0, 6.0, COMPONENTS))
            scales = pyro.param("scales", torch.ones(COMPONENTS), constraint=constraints.positive)
            with pyro.plate("points", len(data)):
                which = pyro.sample("which", dist.Categorical(weights), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(means[which], scales[which]), obs=data)

        return Parts(model, lambda data: None, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), (data,))

    return parts


def of_priors(data: Tensor) -> Callable[[Any], Parts]:
    """Vectors; weights, means and scales have priors."""

    def parts(pyro: Any) -> Parts:
        dist = pyro.distributions

        def model(data: Tensor) -> None:
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(COMPONENTS)))
            with pyro.plate("components", COMPONENTS):
                means = pyro.sample("means", dist.Normal(torch.zeros(SIZE), 5.0).to_event(1))
                scales = pyro.sample("scales", dist.LogNormal(torch.zeros(SIZE), 1.0).to_event(1))
            with pyro.plate("points", len(data)):
                which = pyro.sample("which", dist.Categorical(weights), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(means[which], scales[which]).to_event(1), obs=data)

        named = pyro.poutine.block(model, expose=["weights", "means", "scales"])
        guide = pyro.infer.autoguide.AutoDelta(named)
        return Parts(model, guide, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), (data,))

    return parts


WORKLOADS = (
    Workload("numbers, parameters", of_parameters(points(POINTS)), AT_LEAST),
    Workload(f"vectors of {SIZE}, priors", of_priors(points(POINTS, SIZE)), AT_LEAST),
)

if __name__ == "__main__":
    title = f"SVI.step: mixture, N={POINTS:,}, K={COMPONENTS}, assignments enumerated"
    sys.exit(race_workloads(title, __doc__ or "", WORKLOADS))
