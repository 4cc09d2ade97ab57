"""Programs and posteriors that the tests of posterior containers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.infer.abstract_infer import TracePosterior


class FromRuns(TracePosterior):
    """One trace of `model` per log-weight; trace i belongs to chain i % num_chains."""

    def __init__(self, model: Callable[..., Any], log_weights: Sequence[Any], **options: Any) -> None:
        super().__init__(**options)
        self.model = model
        self.weights = log_weights

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        for number, log_weight in enumerate(self.weights):
            trace = handlers.trace(self.model).get_trace(*args, **kwargs)
            yield trace, log_weight, number % self.num_chains


def counted(start: int = 0) -> Callable[[], Any]:
    """A model whose only latent site is 0., 1., 2., ... in its successive runs."""
    count = iter(range(start, 1_000_000))

    def model() -> torch.Tensor:
        number = torch.tensor(float(next(count)))
        return sumprod.sample("number", dist.Delta(number)) * 10

    return model


DATA = torch.tensor([0.5, 1.5, -0.3, 2.0])


def normal_model(data: torch.Tensor | None = DATA, size: int = 4) -> torch.Tensor:
    """loc ~ Normal(0, 2); in plate "data", x ~ Normal(loc, 1)."""
    loc = sumprod.sample("loc", dist.Normal(0.0, 2.0))
    with sumprod.plate("data", size):
        sumprod.sample("x", dist.Normal(loc, 1.0), obs=data)
    return loc * 2


def normal_posterior(data: torch.Tensor = DATA) -> tuple[float, float]:
    """Mean and variance of loc in `normal_model`."""
    variance = 1 / (1 / 4 + len(data))
    return variance * data.double().sum().item(), variance


def exact_guide(data: torch.Tensor | None = DATA, size: int = 4) -> None:
    """Draws loc from its posterior in `normal_model`, given the data or by default `DATA`."""
    mean, variance = normal_posterior(DATA if data is None else data)
    sumprod.sample("loc", dist.Normal(mean, variance**0.5))


def log_evidence(data: torch.Tensor = DATA) -> float:
    """Log-density of the data in `normal_model`."""
    count = len(data)
    covariance = torch.eye(count, dtype=torch.float64) + 4.0
    normal = torch.distributions.MultivariateNormal(torch.zeros(count, dtype=torch.float64), covariance)
    return normal.log_prob(data.double()).item()
