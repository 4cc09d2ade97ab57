"""What optimisers must equal: one torch optimiser per parameter, and equations for one number at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sumprod.optim import PyroOptim
from sumprod.params import PARAM_STORE

Shape = tuple[int, ...]


def parameter(name: str, value: torch.Tensor) -> torch.Tensor:
    """The leaf of a new parameter in the store."""
    PARAM_STORE[name] = value
    return PARAM_STORE[name].unconstrained()


class Reference:
    """The parameters once more, outside the store, with an optimiser each."""

    def __init__(self, make: Callable[[str, torch.Tensor], Any]) -> None:
        self.leaves: dict[str, torch.Tensor] = {}
        self._make = make
        self.optimizers: dict[str, Any] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        self.leaves[name] = value.detach().clone().requires_grad_()

    def step(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.optimizers:
                self.optimizers[name] = self._make(name, self.leaves[name])
            self.optimizers[name].step()


def run(
    optim: PyroOptim,
    reference: Reference,
    generator: torch.Generator,
    shapes: Sequence[Shape],
    steps: int = 40,
    sparse: bool = False,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Steps both on the same gradients; returns the largest difference, in units of the rounding error.

    Parameters appear in steps 0, 3 and 10. Each step leaves some out, and gives some no gradient.
    """
    choose = random.Random(0)
    worst = 0.0
    for step in range(steps):
        if step in (0, 3, 10):
            for index, shape in enumerate(shapes):
                name = f"p{step}_{index}"
                value = torch.randn(shape, generator=generator, dtype=dtype)
                parameter(name, value)
                reference.add(name, value)
        names = [name for name in reference.leaves if choose.random() < 0.8]
        for name in names:
            leaf, copy = PARAM_STORE[name], reference.leaves[name]
            grad = None
            if choose.random() < 0.9:
                grad = torch.randn(leaf.shape, generator=generator, dtype=dtype)
                grad = grad.to_sparse() if sparse else grad
            leaf.grad, copy.grad = grad, None if grad is None else grad.clone()
        optim([PARAM_STORE[name] for name in names])
        reference.step(names)
        for name, copy in reference.leaves.items():
            leaf = PARAM_STORE[name].detach()
            scale = copy.detach().abs().clamp(min=1.0) * torch.finfo(dtype).eps
            worst = max(worst, ((leaf - copy.detach()).abs() / scale).max().item())
    return worst


def assert_equations(
    make: Callable[..., Any],
    by_hand: Callable[..., float],
    options: dict[str, Any],
    generator: torch.Generator,
) -> None:
    """25 steps equal `by_hand(start, gradients, **options)` at each number; gradients are only read."""
    start = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    grads = torch.randn(25, 2, 3, generator=generator, dtype=torch.float64) * 3
    leaf = start.clone().requires_grad_()
    optimizer = make([leaf], **options)
    for grad in grads:
        leaf.grad = grad.clone()
        optimizer.step()
        assert leaf.grad.equal(grad)
    expected = [
        by_hand(value, column.tolist(), **options)
        for value, column in zip(start.flatten().tolist(), grads.flatten(1).unbind(1), strict=True)
    ]
    torch.testing.assert_close(leaf.detach().flatten(), torch.tensor(expected, dtype=torch.float64))
