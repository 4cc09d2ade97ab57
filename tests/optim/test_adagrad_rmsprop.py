"""AdagradRMSProp against its equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sumprod.optim
from sumprod.optim.adagrad_rmsprop import AdagradRMSProp
from tests.optim.reference import Reference, assert_equations, run

OPTIONS: list[dict[str, Any]] = [{}, {"eta": 0.3, "t": 0.7, "delta": 0.1}, {"t": 1.0}]


def by_hand(
    start: float, grads: list[float], eta: float = 1.0, delta: float = 1e-16, t: float = 0.1
) -> float:
    value, average = start, 0.0
    for step, grad in enumerate(grads, start=1):
        average = grad**2 if step == 1 else t * grad**2 + (1 - t) * average
        value -= eta * step ** (delta - 0.5) * grad / (1 + math.sqrt(average))
    return value


@pytest.mark.parametrize("options", OPTIONS)
def test_equations(options: dict[str, Any], generator: torch.Generator) -> None:
    assert_equations(AdagradRMSProp, by_hand, options, generator)


@pytest.mark.parametrize("options", OPTIONS)
def test_sharing_changes_nothing(options: dict[str, Any], generator: torch.Generator) -> None:
    reference = Reference(lambda _, leaf: AdagradRMSProp([leaf], **options))
    assert run(sumprod.optim.AdagradRMSProp(options), reference, generator, [(), (3,), (2, 5)]) == 0


def test_errors() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="eta must be at least 0"):
        AdagradRMSProp([leaf], eta=-1.0)
    with pytest.raises(ValueError, match="t must be between 0 and 1"):
        AdagradRMSProp([leaf], t=1.5)
    leaf.grad = torch.ones(2).to_sparse()
    with pytest.raises(NotImplementedError, match="AdagradRMSProp cannot use the sparse gradient"):
        AdagradRMSProp([leaf]).step()
