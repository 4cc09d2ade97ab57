"""Shapes of what the native contraction operators return, for compilers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _Reader:
    """Reads an encoded plan; its layout is described in csrc/ops/contract_plan.h."""

    def __init__(self, plan: str) -> None:
        self._numbers = map(int, plan.split())
        count = self.next()
        self.sizes = [self.next() for _ in range(count)]
        self.is_plate = [bool(self.next()) for _ in range(count)]
        self.slots = []
        for _ in range(self.next()):
            self.next()  # which operand the factor is
            self.slots.append(self.list())
        self.drawn: list[list[int]] = []  # shape of each variable's draws
        for _ in range(self.next()):
            self.list()
            variables = self.list()
            self.list()
            self.slots.append(self.list())
            shape = [self.sizes[dim] for dim in self.slots[-1] if self.is_plate[dim]]
            self.drawn += [shape] * len(variables)
        self.results = [[self.sizes[dim] for dim in self.slots[slot]] for slot in self.list()]

    def next(self) -> int:
        return next(self._numbers)

    def list(self) -> list[int]:
        return [self.next() for _ in range(self.next())]


@torch.library.register_fake("sumprod::contract")
def _fake_contract(factors: Sequence[Tensor], plan: str, max_plus: bool) -> list[Tensor]:
    return [factors[0].new_empty(shape) for shape in _Reader(plan).results]


@torch.library.register_fake("sumprod::contract_backward")
def _fake_backward(grads: Sequence[Tensor], factors: Sequence[Tensor], plan: str) -> list[Tensor]:
    return [factor.new_empty(factor.shape) for factor in factors]


@torch.library.register_fake("sumprod::contract_draw")
def _fake_draw(
    factors: Sequence[Tensor], plan: str, uniforms: Tensor | None, maximise: bool
) -> tuple[list[Tensor], list[Tensor]]:
    reader = _Reader(plan)
    return (
        [factors[0].new_empty(shape) for shape in reader.results],
        [factors[0].new_empty(shape, dtype=torch.int64) for shape in reader.drawn],
    )
