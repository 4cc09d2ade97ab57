"""Pairs of programs with enumeration, written once for any library with Pyro's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

PAIRS: dict[str, Callable[[Any], tuple[Any, Any]]] = {}
PARALLEL = {"enumerate": "parallel"}
DATA = torch.tensor([0.2, -1.0, 2.5, 1.4, 3.0, -0.3], dtype=torch.float64)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(make: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any], tuple[Any, Any]]:
    PAIRS[make.__name__] = make
    return make


def nothing() -> None:
    pass


@pair
def mixture(pyro: Any) -> tuple[Any, Any]:
    dist = pyro.distributions

    def model() -> None:
        weights = pyro.param("weights", double(0.2, 0.3, 0.5), constraint=dist.constraints.simplex)
        locs = pyro.param("locs", double(-1.0, 0.5, 2.0))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[z], double(0.7)), obs=DATA)

    return model, nothing


@pair
def mixture_with_sampled_locations(pyro: Any) -> tuple[Any, Any]:
    """A reparameterised guide beside enumeration in the model."""
    dist = pyro.distributions

    def model() -> None:
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(double(0.0), double(3.0)))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Categorical(double(0.2, 0.3, 0.5)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[z], double(0.7)), obs=DATA)

    def guide() -> None:
        loc = pyro.param("loc", double(-1.0, 0.5, 2.0))
        with pyro.plate("components", 3):
            pyro.sample("locs", dist.Normal(loc, double(0.1)))

    return model, guide


@pair
def subsampled_mixture(pyro: Any) -> tuple[Any, Any]:
    dist = pyro.distributions

    def model() -> None:
        locs = pyro.param("locs", double(-1.0, 2.0))
        with pyro.plate("data", 6, subsample=torch.tensor([1, 4])) as index:
            z = pyro.sample("z", dist.Bernoulli(double(0.4)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[z.long()], double(0.7)), obs=DATA[index])

    return model, nothing


@pair
def masked_chain(pyro: Any) -> tuple[Any, Any]:
    """Sequences of unequal lengths."""
    dist = pyro.distributions
    lengths = torch.tensor([3, 1, 4])

    def model() -> None:
        transition = pyro.param("transition", double(0.7, 0.3, 0.2, 0.8).reshape(2, 2))
        locs = pyro.param("locs", double(-1.0, 2.0))
        with pyro.plate("sequences", 3):
            z: Any = torch.tensor(0)
            for t in pyro.markov(range(4)):
                with pyro.poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z{t}", dist.Categorical(transition[z]), infer=PARALLEL)
                    pyro.sample(f"x{t}", dist.Normal(locs[z], double(1.0)), obs=DATA[t : t + 3])

    return model, nothing


@pair
def factorial_chain(pyro: Any) -> tuple[Any, Any]:
    dist = pyro.distributions

    def model() -> None:
        probs = pyro.param("probs", double(0.7, 0.3, 0.2, 0.8).reshape(2, 2))
        w: Any = torch.tensor(0)
        y: Any = torch.tensor(0)
        for t in pyro.markov(range(5)):
            w = pyro.sample(f"w{t}", dist.Categorical(probs[w]), infer=PARALLEL)
            y = pyro.sample(f"y{t}", dist.Categorical(probs[y]), infer=PARALLEL)
            with pyro.plate(f"tones{t}", 2, dim=-1):
                pyro.sample(f"x{t}", dist.Normal((w + 2 * y).double(), double(1.0)), obs=DATA[t : t + 2])

    return model, nothing


@pair
def parallel_guide(pyro: Any) -> tuple[Any, Any]:
    dist = pyro.distributions

    def model() -> None:
        with pyro.poutine.scale(scale=2.0):
            a = pyro.sample("a", dist.Bernoulli(double(0.3)))
            with pyro.plate("data", 6):
                b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
                pyro.sample("x", dist.Normal(a + 2 * b, double(1.0)), obs=DATA)

    def guide() -> None:
        qa = pyro.param("qa", double(0.6).squeeze(), constraint=dist.constraints.unit_interval)
        qb = pyro.param("qb", torch.full((6,), 0.4, dtype=torch.float64))
        a = pyro.sample("a", dist.Bernoulli(qa), infer=PARALLEL)
        with pyro.plate("data", 6):
            pyro.sample("b", dist.Bernoulli(qb * (0.5 + 0.5 * a)), infer=PARALLEL)

    return model, guide


@pair
def sequential_guide(pyro: Any) -> tuple[Any, Any]:
    model, guide = parallel_guide(pyro)
    mark = pyro.poutine.infer_config
    return model, mark(
        guide, config_fn=lambda site: {"enumerate": "sequential"} if site["name"] == "a" else {}
    )


@pair
def sampled_guide_beside_enumerated(pyro: Any) -> tuple[Any, Any]:
    """Score functions in plates, beside an enumerated site; equal seeds give equal draws."""
    dist = pyro.distributions
    model, _ = parallel_guide(pyro)

    def guide() -> None:
        qa = pyro.param("qa", double(0.6).squeeze())
        qb = pyro.param("qb", torch.full((6,), 0.4, dtype=torch.float64))
        a = pyro.sample("a", dist.Bernoulli(qa))
        with pyro.plate("data", 6), pyro.poutine.mask(mask=DATA > 0):
            pyro.sample("b", dist.Bernoulli(qb * (0.5 + 0.5 * a)))

    return model, guide


@pair
def guide_and_model(pyro: Any) -> tuple[Any, Any]:
    """The guide enumerates a global site, the model one per row."""
    dist = pyro.distributions

    def model() -> None:
        loc = pyro.param("loc", double(1.5).squeeze())
        a = pyro.sample("a", dist.Bernoulli(double(0.3).squeeze()))
        with pyro.plate("data", 6):
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a), infer=PARALLEL)
            pyro.sample("x", dist.Normal(a + loc * b, double(1.0)), obs=DATA)

    def guide() -> None:
        qa = pyro.param("qa", double(0.6).squeeze(), constraint=dist.constraints.unit_interval)
        pyro.sample("a", dist.Bernoulli(qa), infer=PARALLEL)

    return model, guide
