"""A conjugate pair of programs and its trainer, for the tests of training loops and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

import sumprod
import sumprod.distributions as dist
from sumprod.infer import SVI, Trace_ELBO


def model(x: Any = 1.0) -> Tensor:
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.as_tensor(x))
    result: Tensor = z * 2
    return result


def guide(x: Any = 1.0) -> None:
    scale = sumprod.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.5)), scale))


def make(**kwargs: Any) -> SVI:
    return SVI(model, guide, sumprod.optim.Adam({"lr": 0.1}), Trace_ELBO(), **kwargs)


def params() -> dict[str, float]:
    return {name: value.item() for name, value in sumprod.get_param_store().items()}
