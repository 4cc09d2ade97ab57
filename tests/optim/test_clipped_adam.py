"""ClippedAdam against its equations, written out for one number at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sumprod.optim
from sumprod.optim.clipped_adam import ClippedAdam
from tests.optim.reference import Reference, assert_equations, parameter, run


def by_hand(
    start: float,
    grads: list[float],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 10.0,
    lrd: float = 1.0,
    centered_variance: bool = False,
) -> float:
    value, mean, square = start, 0.0, 0.0
    for step, raw in enumerate(grads, start=1):
        grad = min(max(raw, -clip_norm), clip_norm) + weight_decay * value
        mean = betas[0] * mean + (1 - betas[0]) * grad
        spread = grad - mean if centered_variance else grad
        square = betas[1] * square + (1 - betas[1]) * spread**2
        correction = math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
        value -= lr * lrd**step * correction * mean / (math.sqrt(square) + eps)
    return value


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.1, "eps": 0.3},
    {"lr": 0.1, "lrd": 0.9, "clip_norm": 0.5},
    {"lr": 0.1, "weight_decay": 0.3, "betas": (0.5, 0.7)},
    {"lr": 0.1, "centered_variance": True, "betas": (0.5, 0.9), "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_trap_45_clipped_adam_clamps_elements(options: dict[str, Any], generator: torch.Generator) -> None:
    assert_equations(ClippedAdam, by_hand, options, generator)


@pytest.mark.parametrize("options", OPTIONS)
def test_sharing_changes_nothing(options: dict[str, Any], generator: torch.Generator) -> None:
    reference = Reference(lambda _, leaf: ClippedAdam([leaf], **options))
    assert run(sumprod.optim.ClippedAdam(options), reference, generator, [(), (3,), (2, 5)]) == 0


def test_files_by_pyro_continue_with_their_decayed_rate() -> None:
    """There the option lr has been multiplied by lrd in each step, and no state says so."""
    leaf = parameter("a", torch.zeros(1, dtype=torch.float64))
    group = {"lr": 0.25, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "clip_norm": 10.0, "lrd": 0.5}
    state = {"step": 2, "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    optim = sumprod.optim.ClippedAdam({"lr": 1.0, "lrd": 0.5})
    group = {**group, "centered_variance": False, "params": [0]}
    optim.set_state({"a": {"state": {0: state}, "param_groups": [group]}})
    leaf.grad = torch.ones(1, dtype=torch.float64)
    optim([leaf])
    correction = math.sqrt(1 - 0.999**3) / (1 - 0.9**3)
    assert leaf.item() == pytest.approx(-0.125 * correction * 0.1 / math.sqrt(0.001))


def test_several_groups_and_closure() -> None:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = ClippedAdam([{"params": [first], "lr": 0.5}, {"params": [second]}], lr=0.25)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (first + second - 5).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25
    torch.testing.assert_close(torch.cat([first, second]).detach(), torch.tensor([0.5, 0.25]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"clip_norm": -1.0}, "clip_norm must be at least 0"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0"),
        ({"betas": (1.0, 0.5)}, "betas must be"),
        ({"lrd": 0.0}, "lrd must be above 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClippedAdam([torch.zeros(1, requires_grad=True)], **options)


def test_sparse_gradients_are_refused() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    leaf.grad = torch.ones(2).to_sparse()
    with pytest.raises(NotImplementedError, match="ClippedAdam cannot use the sparse gradient"):
        ClippedAdam([leaf]).step()
