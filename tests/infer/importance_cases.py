"""One program for Pyro and sumprod, which the tests of importance sampling share."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as pyro_dist
import torch

import sumprod
from sumprod import distributions as dist


def program(library: Any, family: Any) -> tuple[Any, Any]:
    def model() -> None:
        m = library.sample("m", family.Normal(0.0, 1.0))
        library.sample("v", family.Normal(torch.zeros(2), 1.0).to_event(1))
        with library.plate("d", 3):
            z = library.sample("z", family.Normal(m, 1.0))
            library.sample("x", family.Normal(z, 1.0), obs=torch.tensor([0.5, 1.0, -0.3]))

    def guide() -> None:
        m = library.sample("m", family.Normal(0.3, 0.8))
        library.sample("v", family.Normal(torch.zeros(2), 1.1).to_event(1))
        with library.plate("d", 3):
            library.sample("z", family.Normal(m, 1.2))

    return model, guide


OURS, PYROS = program(sumprod, dist), program(pyro, pyro_dist)
