"""Programs with one shared plate, and the bound by its definition, for the tests of `RenyiELBO`."""

from __future__ import annotations

import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist

ALPHAS = [-1.0, 0.0, 0.5, 2.0]
DATA = torch.tensor([0.3, -1.2, 2.0])


def local_model() -> None:
    with sumprod.plate("rows", 3):
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.sample("x", dist.Normal(z, 1.0), obs=DATA)


def local_guide() -> None:
    with sumprod.plate("rows", 3):
        sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor([0.1, -0.5, 0.9])), 0.8))


def global_model() -> None:
    g = sumprod.sample("g", dist.Normal(0.0, 1.0))
    with sumprod.plate("rows", 3):
        sumprod.sample("x", dist.Normal(g, 1.0), obs=DATA)


def global_guide() -> None:
    sumprod.sample("g", dist.Normal(sumprod.param("loc", torch.tensor(0.4)), 0.7))


def bound(log_weights: Tensor, alpha: float) -> Tensor:
    """The definition, in double precision, from log-weights with the particles in dim 0."""
    powers = ((1 - alpha) * log_weights.double()).exp()
    return powers.mean(0).log().sum() / (1 - alpha)
