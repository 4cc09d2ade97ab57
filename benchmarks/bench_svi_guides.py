"""One `SVI.step` with automatic guides, against Pyro."""

from __future__ import annotations

import sys
from typing import Any

import torch

from _svi import Step, SviProgram, race_programs, stepper

DATA = torch.randn(50, 3, generator=torch.Generator().manual_seed(6)) + 0.5


def automatic(name: str, loss: str = "Trace_ELBO", particles: int = 1, **options: Any) -> Any:
    """A model with a scale, a simplex, a vector and 50 row effects."""

    def build(pyro: Any) -> Step:
        dist = pyro.distributions

        def model() -> None:
            sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
            share = pyro.sample("share", dist.Dirichlet(2.0 * torch.ones(3)))
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 2.0).to_event(1))
            with pyro.plate("rows", 50, dim=-1):
                effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
                loc = mean + share * effect.unsqueeze(-1)
                pyro.sample("x", dist.Normal(loc, sigma.unsqueeze(-1)).to_event(1), obs=DATA)

        guide = getattr(pyro.infer.autoguide, name)(model, **options)
        elbo = getattr(pyro.infer, loss)(
            num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
        )
        return stepper(pyro, model, guide, elbo)

    return build


PROGRAMS = (
    SviProgram("AutoDelta", automatic("AutoDelta")),
    SviProgram("AutoNormal", automatic("AutoNormal")),
    SviProgram("AutoNormal, 4 vectorised particles", automatic("AutoNormal", particles=4)),
    SviProgram("AutoDiagonalNormal", automatic("AutoDiagonalNormal")),
    SviProgram("AutoMultivariateNormal", automatic("AutoMultivariateNormal")),
    SviProgram("AutoLowRankMultivariateNormal", automatic("AutoLowRankMultivariateNormal", rank=3)),
    SviProgram("AutoDiagonalNormal, RenyiELBO", automatic("AutoDiagonalNormal", "RenyiELBO", particles=5)),
)

if __name__ == "__main__":
    sys.exit(race_programs("SVI.step: automatic guides", __doc__ or "", PROGRAMS))
