"""A pair of programs with a plate, and the losses that the tests of their base class run it under."""

from __future__ import annotations

from typing import Any

import torch

import sumprod
import sumprod.distributions as dist
from sumprod.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

LOSSES = [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO]


def model(x: Any = None) -> None:
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    with sumprod.plate("rows", 3):
        y = sumprod.sample("y", dist.Normal(z, 1.0))
        sumprod.sample("x", dist.Normal(y, 1.0), obs=torch.ones(3) if x is None else x)


def guide(x: Any = None) -> None:
    sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.3)), 1.0))
    with sumprod.plate("rows", 3):
        sumprod.sample("y", dist.Normal(0.0, 1.0))
