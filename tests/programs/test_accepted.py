"""Every arrangement of plates under every estimator: accepted silently, with Pyro's numbers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod

peer = pytest.importorskip("pyro", reason="pyro-ppl is the peer; it comes with the test extra")

Program = Callable[..., Any]


def no_plate(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        latent("z", ())
        if observe:
            pyro.sample("x", pyro.distributions.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    return body


def vectorised(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        with pyro.plate("a", 6, subsample_size=size, dim=-1) as i:
            z = latent("z", (len(i),))
            if observe:
                pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=torch.ones(len(i)))

    return body


def sequential(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        for i in pyro.plate("a", 6, subsample_size=size):
            z = latent(f"z{int(i)}", ())
            if observe:
                pyro.sample(f"x{int(i)}", pyro.distributions.Normal(z, 1.0), obs=torch.tensor(0.5))

    return body


def nested(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        with pyro.plate("a", 6, subsample_size=size, dim=-1) as i:
            z = latent("z", (len(i),))
            with pyro.plate("b", 4, subsample_size=size, dim=-2) as j:
                y = latent("y", (len(j), len(i)))
                if observe:
                    pyro.sample("x", pyro.distributions.Normal(z + y, 1.0), obs=torch.ones(len(j), len(i)))

    return body


def crossed(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        a = pyro.plate("a", 6, subsample_size=size, dim=-1)
        b = pyro.plate("b", 4, subsample_size=size, dim=-2)
        with a as i:
            z = latent("z", (len(i),))
        with b as j:
            y = latent("y", (len(j), 1))
        with a, b:
            if observe:
                pyro.sample("x", pyro.distributions.Normal(z + y, 1.0), obs=torch.ones(len(j), len(i)))

    return body


def vectorised_in_sequential(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        for i in pyro.plate("a", 3):
            with pyro.plate(f"b{int(i)}", 4, subsample_size=size, dim=-1) as j:
                z = latent(f"z{int(i)}", (len(j),))
                if observe:
                    pyro.sample(f"x{int(i)}", pyro.distributions.Normal(z, 1.0), obs=torch.ones(len(j)))

    return body


def sequential_in_vectorised(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        with pyro.plate("a", 6, subsample_size=size, dim=-1) as i:
            for j in pyro.plate("b", 3):
                z = latent(f"z{int(j)}", (len(i),))
                if observe:
                    pyro.sample(f"x{int(j)}", pyro.distributions.Normal(z, 1.0), obs=torch.ones(len(i)))

    return body


def sequential_in_sequential(pyro: Any, latent: Program, size: int | None) -> Program:
    def body(observe: bool) -> None:
        for i in pyro.plate("a", 3, subsample_size=size):
            for j in pyro.plate(f"b{int(i)}", 3, subsample_size=size):
                z = latent(f"z{int(i)}{int(j)}", ())
                if observe:
                    name = f"x{int(i)}{int(j)}"
                    pyro.sample(name, pyro.distributions.Normal(z, 1.0), obs=torch.tensor(0.5))

    return body


STRUCTURES = [
    no_plate,
    vectorised,
    sequential,
    nested,
    crossed,
    vectorised_in_sequential,
    sequential_in_vectorised,
    sequential_in_sequential,
]

ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "trace": lambda infer: infer.Trace_ELBO(),
    "trace, 2 particles": lambda infer: infer.Trace_ELBO(num_particles=2),
    "trace, vectorised": lambda infer: infer.Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=2
    ),
    "mean field": lambda infer: infer.TraceMeanField_ELBO(),
    "mean field, vectorised": lambda infer: infer.TraceMeanField_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=2
    ),
    "renyi": lambda infer: infer.RenyiELBO(alpha=0.5, num_particles=2),
    "renyi, vectorised": lambda infer: infer.RenyiELBO(
        num_particles=2, vectorize_particles=True, max_plate_nesting=2
    ),
}


def model_and_guide(
    pyro: Any, structure: Program, size: int | None, discrete: bool
) -> tuple[Program, Program]:
    dist = pyro.distributions

    def prior(name: str, shape: tuple[int, ...]) -> Tensor:
        value = torch.zeros(shape)
        return pyro.sample(name, dist.Bernoulli(value + 0.3) if discrete else dist.Normal(value, 1.0))

    def posterior(name: str, shape: tuple[int, ...]) -> Tensor:
        loc = pyro.param("loc", torch.tensor(0.2)) + torch.zeros(shape)
        return pyro.sample(name, dist.Bernoulli(logits=loc) if discrete else dist.Normal(loc, 0.5))

    model, guide = structure(pyro, prior, size), structure(pyro, posterior, size)
    return lambda: model(True), lambda: guide(False)


def losses_and_gradient(
    pyro: Any, structure: Program, estimator: str, size: int | None, discrete: bool
) -> Any:
    model, guide = model_and_guide(pyro, structure, size, discrete)
    elbo = ESTIMATORS[estimator](pyro.infer)
    pyro.set_rng_seed(0)
    loss = elbo.loss(model, guide)
    value = elbo.loss_and_grads(model, guide)
    gradient = dict(pyro.get_param_store().named_parameters())["loc"].grad
    return loss, value, None if gradient is None else gradient.item()


def matrix() -> Iterator[Any]:
    for structure, estimator, size, discrete in itertools.product(
        STRUCTURES, ESTIMATORS, [None, 2], [False, True]
    ):
        if discrete and estimator.startswith("mean field"):
            continue  # refused, see test_refused.py
        if structure is no_plate and size is not None:
            continue  # nothing to subsample
        if discrete and size is not None and estimator.startswith("renyi"):
            continue  # Pyro scales the score of a draw with its plate; ours does not
        label = f"{structure.__name__}-{estimator}-{size or 'full'}-{'score' if discrete else 'pathwise'}"
        yield pytest.param(structure, estimator, size, discrete, id=label)


@pytest.mark.parametrize(("structure", "estimator", "size", "discrete"), list(matrix()))
def test_accepted(structure: Program, estimator: str, size: int | None, discrete: bool) -> None:
    """Silently accepted, with Pyro's loss and gradient for the same draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = losses_and_gradient(peer, structure, estimator, size, discrete)
    if size is not None and estimator.startswith("renyi"):
        # Rescaled subsets do not estimate this bound: the one thing that Pyro does not say.
        with pytest.warns(UserWarning, match="subsample"):
            actual = losses_and_gradient(sumprod, structure, estimator, size, discrete)
    else:
        actual = losses_and_gradient(sumprod, structure, estimator, size, discrete)
    assert all(type(value) is float for value in actual)
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-5)
