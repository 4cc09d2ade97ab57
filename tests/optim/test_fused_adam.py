"""The shortcut for a fused Adam: same bits, and out of the way when it must be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

import sumprod.optim
from sumprod.optim._fused_adam import FusedAdamPlan
from tests.optim.reference import parameter

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 1, "betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.2, "maximize": True}),
    ("AdamW", {"lr": 0.1}),
]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each attempt of the shortcut answered."""
    answers: list[bool] = []
    step = FusedAdamPlan.step

    def record(self: FusedAdamPlan) -> bool:
        answers.append(step(self))
        return answers[-1]

    monkeypatch.setattr(FusedAdamPlan, "step", record)
    return answers


def pair(name: str, options: dict[str, Any]) -> tuple[list[torch.Tensor], Any, list[torch.Tensor], Any]:
    leaves = [parameter(str(index), torch.ones(shape)) for index, shape in enumerate([(), (3,), (2, 70)])]
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    together = getattr(torch.optim, name)(copies, **options, fused=True)
    return leaves, getattr(sumprod.optim, name)(options), copies, together


def step(optim: Any, leaves: list[torch.Tensor], generator: torch.Generator) -> None:
    for leaf in leaves:
        leaf.grad = torch.randn(leaf.shape, generator=generator)
    optim(leaves)


def step_both(
    leaves: list[torch.Tensor],
    optim: Any,
    copies: list[torch.Tensor],
    together: Any,
    generator: torch.Generator,
) -> None:
    for leaf, clone in zip(leaves, copies, strict=True):
        leaf.grad = torch.randn(leaf.shape, generator=generator)
        clone.grad = leaf.grad.clone()
    optim(leaves)
    together.step()
    assert all(leaf.equal(clone) for leaf, clone in zip(leaves, copies, strict=True))


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_same_bits(
    name: str, options: dict[str, Any], planned: list[bool], generator: torch.Generator
) -> None:
    everything = pair(name, options)
    for _ in range(10):
        step_both(*everything, generator)
    assert planned == [True] * 9
    _, optim, copies, together = everything
    state = optim.get_state()["2"]["state"][0]
    assert state["step"] == 10
    assert state["exp_avg"].equal(together.state[copies[2]]["exp_avg"])


def test_options_changed_by_hand_or_scheduler(planned: list[bool], generator: torch.Generator) -> None:
    leaves, optim, copies, together = pair("Adam", {"lr": 0.1})
    for epoch in range(5):
        step_both(leaves, optim, copies, together, generator)
        for made in {*optim.optim_objs.values(), together}:
            made.param_groups[0]["lr"] = 0.1 / (epoch + 2)
    assert planned == [True] * 4


def test_missing_gradients(planned: list[bool], generator: torch.Generator) -> None:
    leaves, optim, copies, together = pair("Adam", {"lr": 0.1})
    for index in range(6):
        for leaf, clone in zip(leaves, copies, strict=True):
            leaf.grad = torch.randn(leaf.shape, generator=generator)
            clone.grad = leaf.grad.clone()
        if index in (2, 3):
            leaves[1].grad = copies[1].grad = None
        optim(leaves)
        together.step()
        assert all(leaf.equal(clone) for leaf, clone in zip(leaves, copies, strict=True))
    assert planned == [True, False, False, True, True]


def test_replaced_state(planned: list[bool], generator: torch.Generator) -> None:
    """`load_state_dict` of the torch optimiser itself, behind our back."""
    leaves, optim, copies, together = pair("Adam", {"lr": 0.1})
    step_both(leaves, optim, copies, together, generator)
    step_both(leaves, optim, copies, together, generator)
    (made,) = set(optim.optim_objs.values())
    saved = copy.deepcopy(together.state_dict())
    for state in saved["state"].values():
        state["exp_avg"] = torch.ones_like(state["exp_avg"])
    made.load_state_dict(copy.deepcopy(saved))
    together.load_state_dict(saved)
    for _ in range(3):
        step_both(leaves, optim, copies, together, generator)
    assert all(planned)


def test_hooks_and_tensor_rates(planned: list[bool], generator: torch.Generator) -> None:
    leaves, optim, copies, together = pair("Adam", {"lr": 0.1})
    step_both(leaves, optim, copies, together, generator)
    (made,) = set(optim.optim_objs.values())
    seen: list[Optimizer] = []
    handle = made.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(optimizer))
    step_both(leaves, optim, copies, together, generator)
    handle.remove()
    assert seen == [made]
    for changed in (made, together):
        changed.param_groups[0]["lr"] = torch.tensor(0.05)
    step_both(leaves, optim, copies, together, generator)
    assert planned == [False, False]


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"foreach": True}, {"lr": torch.tensor(0.1)}])
def test_other_adams_have_no_shortcut(
    options: dict[str, Any], planned: list[bool], generator: torch.Generator
) -> None:
    leaf = parameter("a", torch.ones(2))
    optim = sumprod.optim.Adam(options)
    for _ in range(3):
        step(optim, [leaf], generator)
    assert planned == []
