"""Schedulers equal one torch optimiser and scheduler per parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import sumprod.optim
from sumprod.optim import PyroLRScheduler
from sumprod.params import PARAM_STORE
from tests.optim.reference import parameter

SGD = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.5, "momentum": 0.5}}

PARTS = [
    lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2),
    lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.8),
]

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ChainedScheduler", {"schedulers": PARTS}),
    ("ConstantLR", {"factor": 0.5, "total_iters": 2}),
    ("CosineAnnealingLR", {"T_max": 4}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("LambdaLR", {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ("LinearLR", {"start_factor": 0.5, "total_iters": 4}),
    ("MultiStepLR", {"milestones": [2, 4], "gamma": 0.1}),
    ("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.9}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 20}),
    ("PolynomialLR", {"total_iters": 8}),
    ("ReduceLROnPlateau", {"patience": 1}),
    ("SequentialLR", {"schedulers": PARTS, "milestones": [3]}),
    ("StepLR", {"step_size": 2, "gamma": 0.5}),
]
IDS = [name for name, _ in CASES]


def torch_pair(name: str, options: dict[str, Any], leaf: torch.Tensor) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD([leaf], lr=0.5, momentum=0.5, fused=True)
    options = dict(options)
    constructor: Callable[..., Any] = getattr(lr_scheduler, name)
    if "schedulers" in options:
        parts = [part(optimizer) for part in options.pop("schedulers")]
        if name == "ChainedScheduler":
            return optimizer, constructor(parts)
        return optimizer, constructor(optimizer, parts, **options)
    return optimizer, constructor(optimizer, **options)


# torch's SequentialLR calls step(0) of its parts, which torch warns about.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_equals_one_scheduler_each(
    name: str, options: dict[str, Any], tmp_path: Path, generator: torch.Generator
) -> None:
    """Bit for bit: with late parameters, steps without a parameter, and a stop in between."""
    arguments = {**SGD, **options}
    before = dict(arguments)
    optim = getattr(sumprod.optim, name)(arguments)
    assert arguments == before
    assert isinstance(optim, PyroLRScheduler)
    metric = (1.0,) if name == "ReduceLROnPlateau" else ()
    reference: dict[str, tuple[torch.Tensor, Any, Any]] = {}
    for epoch in range(9):
        if epoch in (0, 2):
            for key in (f"a{epoch}", f"b{epoch}"):
                leaf = parameter(key, torch.zeros(2))
                clone = leaf.detach().clone().requires_grad_()
                reference[key] = (clone, *torch_pair(name, options, clone))
        for key in [key for key in reference if not (key == "a0" and epoch == 4)]:
            PARAM_STORE[key].grad = torch.randn(2, generator=generator)
            reference[key][0].grad = PARAM_STORE[key].grad.clone()
            reference[key][1].step()
        optim([PARAM_STORE[key] for key in reference if not (key == "a0" and epoch == 4)])
        optim.step(*metric)
        for _, _, scheduler in reference.values():
            scheduler.step(*metric)
        for key, (clone, optimizer, _) in reference.items():
            made = optim.optim_objs[PARAM_STORE[key]].optimizer
            assert made.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
            assert PARAM_STORE[key].equal(clone), (key, epoch)
        assert len({id(made) for made in optim.optim_objs.values()}) == (1 if epoch < 2 else 2)
        if epoch == 5:
            optim.save(tmp_path / "optim.pt")
            optim = getattr(sumprod.optim, name)(arguments)
            optim.load(tmp_path / "optim.pt")


def test_a_parameter_that_comes_in_the_first_epoch_shares() -> None:
    optim = sumprod.optim.StepLR({**SGD, "step_size": 1})
    for key in "ab":
        parameter(key, torch.zeros(1)).grad = torch.ones(1)
        optim([PARAM_STORE[key]])
    assert len({id(made) for made in optim.optim_objs.values()}) == 1
    # Parameters that are not part of the last step are scheduled, too.
    optim.step()
    assert [made.get_last_lr() for made in optim.optim_objs.values()] == [[0.05], [0.05]]


def test_replaced_leaves_keep_their_epoch() -> None:
    optim = sumprod.optim.ExponentialLR({**SGD, "gamma": 0.5})
    parameter("a", torch.zeros(1)).grad = torch.ones(1)
    optim([PARAM_STORE["a"]])
    optim.step()
    PARAM_STORE["a"] = torch.zeros(1)
    PARAM_STORE["a"].grad = torch.ones(1)
    optim([PARAM_STORE["a"]])
    assert PARAM_STORE["a"].item() == -0.25 * (1 + 0.5)  # lr 0.25, momentum 0.5 from the first step


def test_options_by_name_and_clipping() -> None:
    arguments = {
        "optimizer": torch.optim.SGD,
        "optim_args": lambda name: {"lr": 1.0 if name == "a" else 2.0},
        "gamma": 0.5,
    }
    optim = sumprod.optim.ExponentialLR(arguments, {"clip_value": 0.1})
    leaves = [parameter(key, torch.zeros(1)) for key in "ab"]
    for _ in range(2):
        for leaf in leaves:
            leaf.grad = torch.ones(1)
        optim(leaves)
        optim.step()
    torch.testing.assert_close(torch.stack(leaves).flatten().detach(), torch.tensor([-0.15, -0.3]))


def test_errors() -> None:
    with pytest.raises(KeyError, match="lacks 'optimizer'; expected"):
        sumprod.optim.StepLR({"optim_args": {"lr": 0.1}, "step_size": 1})
    with pytest.raises(KeyError, match="lacks 'optim_args'"):
        sumprod.optim.StepLR({"optimizer": torch.optim.SGD, "step_size": 1})
    with pytest.raises(TypeError, match="step_size"):
        sumprod.optim.StepLR(SGD)([parameter("a", torch.zeros(1))])
    with pytest.raises(NotImplementedError, match="LBFGS"):
        sumprod.optim.StepLR({"optimizer": torch.optim.LBFGS, "optim_args": {}, "step_size": 1})


def test_copies() -> None:
    optim = sumprod.optim.StepLR({**SGD, "step_size": 1})
    parameter("a", torch.zeros(1)).grad = torch.ones(1)
    optim([PARAM_STORE["a"]])
    optim.step()
    other = copy.deepcopy(optim)
    other([PARAM_STORE["a"]])
    assert [made.get_last_lr() for made in other.optim_objs.values()] == [[0.05]]
    other.step()
    assert [made.get_last_lr() for made in optim.optim_objs.values()] == [[0.05]]
