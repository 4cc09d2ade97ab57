"""Numbers and files of Pyro 1.9.2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.optim
import pytest
import torch
from torch.distributions import constraints

import sumprod.optim
from sumprod.params import PARAM_STORE

SGD = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1, "momentum": 0.9}}

CASES: list[tuple[str, tuple[Any, ...]]] = [
    ("Adam", ({"lr": 0.1},)),
    ("Adam", ({"lr": 0.1}, {"clip_norm": 0.5})),
    ("Adam", (lambda module, name: {"lr": 0.1 if name == "a" else 0.2}, {"clip_value": 0.3})),
    ("Adam", (lambda name: {"lr": 0.1 if name == "net.a" else 0.2},)),
    ("SGD", ({"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"clip_norm": 1.0, "clip_value": 0.3})),
    ("RMSprop", ({"lr": 0.1},)),
    ("ClippedAdam", ({"lr": 0.1, "lrd": 0.95, "clip_norm": 0.5, "weight_decay": 0.1},)),
    ("ClippedAdam", ({"lr": 0.1, "centered_variance": True},)),
    ("AdagradRMSProp", ({"eta": 0.5},)),
    ("ExponentialLR", ({**SGD, "gamma": 0.9},)),
    ("OneCycleLR", ({**SGD, "max_lr": 0.2, "total_steps": 60}, {"clip_norm": 0.5})),
]


def stores(generator: torch.Generator) -> tuple[Any, Any]:
    theirs = pyro.get_param_store()
    for name, constraint in (("a", constraints.positive), ("net$$$a", constraints.real)):
        init = torch.rand(3, generator=generator) + 0.5
        theirs.setdefault(name, init.clone(), constraint)
        PARAM_STORE.setdefault(name, init.clone(), constraint)
    return theirs, PARAM_STORE


def step_both(
    theirs: Any, ours: Any, optims: tuple[Any, Any], generator: torch.Generator, number: int
) -> None:
    for _ in range(number):
        leaves = [[leaf for _, leaf in store.named_parameters()] for store in (theirs, ours)]
        for one, other in zip(*leaves, strict=True):
            grad = torch.randn(3, generator=generator)
            one.grad, other.grad = grad.clone(), grad.clone()
        for optim, given in zip(optims, leaves, strict=True):
            optim(given)
            if hasattr(optim, "step"):
                optim.step()


def make_both(name: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    # Pyro takes keys out of the dict that it is given.
    copied = [dict(item) if isinstance(item, dict) else item for item in arguments]
    return getattr(pyro.optim, name)(*copied), getattr(sumprod.optim, name)(*arguments)


def assert_equal(theirs: Any, ours: Any) -> None:
    for name in theirs.keys():  # noqa: SIM118 - a store of Pyro's
        torch.testing.assert_close(ours[name].detach(), theirs[name].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_numbers(name: str, arguments: tuple[Any, ...], generator: torch.Generator) -> None:
    theirs, ours = stores(generator)
    optims = make_both(name, arguments)
    step_both(theirs, ours, optims, generator, 40)
    assert_equal(theirs, ours)


@pytest.mark.parametrize(("name", "arguments"), [CASES[0], *CASES[4:]])
def test_files(name: str, arguments: tuple[Any, ...], generator: torch.Generator, tmp_path: Path) -> None:
    """What Pyro saved goes on here as it does there."""
    theirs, ours = stores(generator)
    optims = make_both(name, arguments)
    step_both(theirs, ours, optims, generator, 5)
    theirs.save(tmp_path / "params.pt")
    optims[0].save(tmp_path / "optim.pt")
    PARAM_STORE.clear()
    with pytest.raises(ValueError, match="allow_pickle=True"):
        PARAM_STORE.load(tmp_path / "params.pt")
    PARAM_STORE.load(tmp_path / "params.pt", allow_pickle=True)
    assert PARAM_STORE._constraints == {"a": constraints.positive, "net$$$a": constraints.real}
    again = getattr(sumprod.optim, name)(*arguments)
    again.load(tmp_path / "optim.pt")
    step_both(theirs, PARAM_STORE, (optims[0], again), generator, 20)
    assert_equal(theirs, PARAM_STORE)
