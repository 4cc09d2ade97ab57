"""Programs made at random: plates in plates, scales and masks around them, latents of many families.

A program is drawn once as a tree of plain data; the same tree is then run as model and as guide, under either
library.  Inside the guide every latent has its own parameters.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PATHWISE = ("normal", "lognormal", "gamma", "beta", "dirichlet", "vector", "multivariate", "student")
SCORE = ("bernoulli", "categorical", "poisson", "onehot", "forced")


@dataclass(frozen=True)
class Site:
    """A latent, an observation, a factor or a deterministic value."""

    name: str
    kind: str
    family: str


@dataclass(frozen=True)
class Block:
    """A plate or handler and what is inside it."""

    name: str
    kind: str
    size: int = 0
    subsample: int | None = None
    dim: int = 0
    number: float = 1.0
    children: list[Any] = field(default_factory=list)


def draw_program(seed: int, *, discrete: bool = True, subsample: bool = True) -> list[Any]:
    """A tree with a few plates (vectorised ones two deep at most) and about six sites."""
    draw = random.Random(seed)
    counter = iter(range(1000))
    families = PATHWISE + (SCORE if discrete else ())

    def site() -> Site:
        kind = draw.choices(["latent", "observed", "factor", "deterministic"], [5, 3, 1, 1])[0]
        family = draw.choice(families if kind == "latent" else ("normal", "poisson", "vector", "bernoulli"))
        return Site(f"{kind[0]}{next(counter)}", kind, family)

    def block(dims: list[int], depth: int) -> Any:
        kind = draw.choices(["plate", "sequential", "scale", "mask"], [4, 1, 1, 1])[0]
        inner, name, dim, size = dims, f"{kind}{next(counter)}", 0, draw.randint(2, 4)
        part = draw.choice([None, None, size - 1]) if subsample else None
        if kind == "plate":
            if not dims:
                return site()
            dim = draw.choice(dims)
            inner = [d for d in dims if d != dim]
        children = [node(inner, depth + 1, kind) for _ in range(draw.randint(1, 3))]
        return Block(name, kind, size, part, dim, draw.choice([0.5, 2.0]), children)

    def node(dims: list[int], depth: int, inside: str = "") -> Any:
        # Sites in a loop get a name for each turn, so loops hold sites only.
        if inside == "sequential" or depth > 2 or draw.random() < 0.5:
            return site()
        return block(dims, depth)

    return [site(), *(node([-1, -2], 0) for _ in range(draw.randint(3, 5)))]


def model_of(pyro: Any, program: list[Any]) -> Callable[[], None]:
    return lambda: _run(pyro, program, (), "", _prior)


def guide_of(pyro: Any, program: list[Any]) -> Callable[[], None]:
    return lambda: _run(pyro, program, (), "", _posterior)


def _run(pyro: Any, nodes: list[Any], plates: tuple[tuple[int, int], ...], suffix: str, visit: Any) -> None:
    for node in nodes:
        if isinstance(node, Site):
            visit(pyro, node, node.name + suffix, _shape(plates))
        elif node.kind == "sequential":
            for i in pyro.plate(node.name, node.size, subsample_size=node.subsample):
                _run(pyro, node.children, plates, f"{suffix}_{i}", visit)
        else:
            with ExitStack() as stack:
                stack.enter_context(_context(pyro, node, _shape(plates)))
                inner = plates
                if node.kind == "plate":
                    inner = (*plates, (node.dim, node.subsample or node.size))
                _run(pyro, node.children, inner, suffix, visit)


def _context(pyro: Any, node: Block, shape: tuple[int, ...]) -> Any:
    if node.kind == "scale":
        return pyro.poutine.scale(scale=node.number)
    if node.kind == "mask":
        mask = (torch.arange(torch.Size(shape).numel()) % 3 != 0).reshape(shape)
        return pyro.poutine.mask(mask=mask if node.number > 1.0 else node.size % 2 == 0)
    return pyro.plate(node.name, node.size, subsample_size=node.subsample, dim=node.dim)


def _shape(plates: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """The batch shape that all open plates ask for."""
    sizes = dict(plates)
    return tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))


def _prior(pyro: Any, site: Site, name: str, shape: tuple[int, ...]) -> None:
    fn = _family(pyro, site.family, torch.full(shape, 0.3))
    if site.kind == "latent":
        pyro.sample(name, fn)
    elif site.kind == "observed":
        value = torch.ones(fn.batch_shape + fn.event_shape)
        pyro.sample(name, fn, obs=value)
    elif site.kind == "factor":
        pyro.factor(name, torch.full(shape, -0.7))
    else:
        pyro.deterministic(name, torch.full((*shape, 2), 0.7), event_dim=1)


def _posterior(pyro: Any, site: Site, name: str, shape: tuple[int, ...]) -> None:
    if site.kind == "latent":
        loc = pyro.param(f"{name}_loc", torch.tensor(0.1))
        pyro.sample(name, _family(pyro, site.family, loc.expand(shape)))


def _family(pyro: Any, family: str, x: Tensor) -> Any:
    """A distribution with parameters that are smooth functions of `x`, whose shape is the batch shape."""
    dist = pyro.distributions
    if family in ("normal", "forced"):
        fn = dist.Normal(x, 1.0 + x.square())
        return fn.has_rsample_(False) if family == "forced" else fn
    if family == "lognormal":
        return dist.LogNormal(x, 0.5)
    if family == "gamma":
        return dist.Gamma(1.0 + x.exp(), 2.0)
    if family == "beta":
        return dist.Beta(1.0 + x.exp(), 2.0)
    if family == "student":
        return dist.StudentT(5.0, x, 1.0)
    if family == "dirichlet":
        return dist.Dirichlet(torch.stack([1.0 + x.exp(), 2.0 - x, 1.0 + x], -1))
    if family == "vector":
        return dist.Normal(torch.stack([x, 2.0 * x], -1), 1.0).to_event(1)
    if family == "multivariate":
        tril = torch.tensor([[1.0, 0.0], [0.3, 0.8]])
        return dist.MultivariateNormal(torch.stack([x, -x], -1), scale_tril=tril)
    if family == "bernoulli":
        return dist.Bernoulli(logits=x)
    if family == "poisson":
        return dist.Poisson(x.exp())
    logits = torch.stack([x, torch.zeros_like(x), -x], -1)
    return dist.OneHotCategorical(logits=logits) if family == "onehot" else dist.Categorical(logits=logits)
