"""Dozens of small sites of a few families, in all the ways in which people write their parameters."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tests.programs.support import Outcome, fit, params_of, program

Builder = Callable[[Any, Any], Any]

# A distribution from the library and a number or tensor x.
PATHWISE: dict[str, Builder] = {
    "normal": lambda dist, x: dist.Normal(x, 1.5),
    "narrow": lambda dist, x: dist.Normal(0.3, 0.2 + 0.1 * x * x),
    "lognormal": lambda dist, x: dist.LogNormal(x, 0.4),
    "gamma": lambda dist, x: dist.Gamma(2.0 + 0.1 * x, 1.5),
    "beta": lambda dist, x: dist.Beta(2.0 + 0.1 * x, 3.0),
    "exponential": lambda dist, x: dist.Exponential(1.0 + 0.1 * x),
    "half": lambda dist, x: dist.HalfNormal(1.0 + 0.1 * x),
    "laplace": lambda dist, x: dist.Laplace(x, 1.0),
    "student": lambda dist, x: dist.StudentT(4.0, x, 1.0),
    "cauchy": lambda dist, x: dist.HalfCauchy(1.0 + 0.1 * x),
}
SCORE: dict[str, Builder] = {
    "bernoulli": lambda dist, x: dist.Bernoulli(logits=torch.as_tensor(0.5 * x)),
    "coin": lambda dist, x: dist.Bernoulli(0.4 + 0.01 * x),
    "categorical": lambda dist, x: dist.Categorical(
        logits=torch.stack([torch.as_tensor(0.5 * k * x) for k in range(3)], -1)
    ),
    "poisson": lambda dist, x: dist.Poisson(1.0 + 0.1 * x),
    "geometric": lambda dist, x: dist.Geometric(0.5 + 0.01 * x),
}


def crowd(seed: int, families: dict[str, Builder], count: int = 36) -> list[dict[str, Any]]:
    """What each site is: family, shape, precision, how its parameter is given, and what surrounds it."""
    draw = random.Random(seed)
    few = draw.sample(list(families), 3)
    return [
        {
            "name": f"z{i}",
            "family": draw.choice(few),
            "shape": draw.choice([(), (), (), (1,), (2,), (2, 3)]),
            "double": draw.random() < 0.15,
            "expand": draw.random() < 0.2,
            "number": draw.random() < 0.2,
            "fixed": draw.random() < 0.2,
            "observed": draw.random() < 0.2,
            "scale": draw.choice([None, None, 0.5]),
            "mask": draw.choice([None, None, None, True, torch.tensor(True)]),
        }
        for i in range(count)
    ]


def visit(pyro: Any, site: dict[str, Any], x: Any, obs: Any = None) -> None:
    dist, poutine, shape = pyro.distributions, pyro.poutine, site["shape"]
    fn = {**PATHWISE, **SCORE}[site["family"]](dist, x)
    if fn.batch_shape != shape or site["expand"]:
        fn = fn.expand(shape)
    scale = nullcontext() if site["scale"] is None else poutine.scale(scale=site["scale"])
    mask = nullcontext() if site["mask"] is None else poutine.mask(mask=site["mask"])
    with scale, mask:
        pyro.sample(site["name"], fn.to_event(len(shape)), obs=obs)


def argument(site: dict[str, Any], value: Tensor) -> Any:
    """The parameter as this site's author would write it: a number, a small tensor, a full one."""
    if site["number"]:
        return 0.2
    value = value.double() if site["double"] else value
    return value if site["expand"] else value.expand(site["shape"])


def crowded(pyro: Any, seed: int, families: dict[str, Builder], loss: Any) -> Outcome:
    sites = crowd(seed, families)

    def model() -> None:
        for site in sites:
            x = argument(site, torch.tensor(0.3))
            obs = None
            if site["observed"]:
                dtype = torch.float64 if site["double"] and not site["number"] else torch.float32
                obs = torch.full(site["shape"], 0.5 if site["family"] in PATHWISE else 1.0, dtype=dtype)
            visit(pyro, site, x, obs)

    def guide() -> None:
        for site in sites:
            if not site["observed"]:
                value = torch.tensor(0.1)
                if not site["fixed"]:
                    value = pyro.param(f"{site['name']}_x", value)
                visit(pyro, site, argument(site, value))

    pyro.clear_param_store()
    outcome = fit(pyro, model, guide, steps=4, loss=loss)
    pyro.clear_param_store()
    loss.loss_and_grads(model, guide)
    leaves = dict(pyro.get_param_store().named_parameters())
    gradients = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    return {**outcome, "gradients": gradients, "again": params_of(pyro)}


@program()
def pathwise(pyro: Any) -> Outcome:
    infer = pyro.infer
    return {str(seed): crowded(pyro, seed, PATHWISE, infer.Trace_ELBO()) for seed in range(6)}


@program()
def with_analytic_divergences(pyro: Any) -> Outcome:
    infer = pyro.infer
    return {str(seed): crowded(pyro, seed, PATHWISE, infer.TraceMeanField_ELBO()) for seed in range(6)}


@program()
def under_renyi(pyro: Any) -> Outcome:
    infer = pyro.infer
    loss = infer.RenyiELBO(alpha=0.5, num_particles=2)
    return {str(seed): crowded(pyro, seed, PATHWISE, loss) for seed in range(3)}


@program()
def by_scores(pyro: Any) -> Outcome:
    infer = pyro.infer
    return {str(seed): crowded(pyro, seed, SCORE, infer.Trace_ELBO()) for seed in range(6)}


@program()
def by_both(pyro: Any) -> Outcome:
    loss = pyro.infer.Trace_ELBO(num_particles=2)
    return {str(seed): crowded(pyro, seed, {**PATHWISE, **SCORE}, loss) for seed in range(6)}
