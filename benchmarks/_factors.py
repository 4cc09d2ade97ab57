"""Factor graphs for the contraction benchmarks: every library gets the same tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from sumprod.ops.contraction import contract


@dataclass(frozen=True)
class Graph:
    """Log-factors in float32, the one-character names of their dims, and a plate, if any, that all are in.

    A factor whose dims lack the plate is the same in all of its slices. Tensors have their names as
    `_pyro_dims` from the start: a view with names in each call would cost everybody the same, and more than
    our whole contraction.
    """

    tensors: Sequence[Tensor]
    dims: Sequence[str]
    plate: str = ""

    def __post_init__(self) -> None:
        self._name(self.tensors)

    def _name(self, tensors: Sequence[Tensor]) -> None:
        for tensor, dims in zip(tensors, self.dims, strict=True):
            tensor._pyro_dims = dims  # type: ignore[attr-defined]

    @property
    def variables(self) -> set[str]:
        return {name for dims in self.dims for name in dims} - {self.plate}

    def leaves(self) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in self.tensors]
        self._name(leaves)
        return leaves

    def by_tree(self, library: ModuleType) -> Callable[[Sequence[Tensor]], Tensor]:
        """Totals by a library's `contract_tensor_tree`, of all components together; [plate] or scalar.

        Called with `tensors` or `leaves()`.
        """
        plates = frozenset(self.plate)
        variables = self.variables

        def call(tensors: Sequence[Tensor]) -> Tensor:
            parts = library.contract_tensor_tree(OrderedDict({plates: list(tensors)}), variables)[plates]
            return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

        return call

    def by_contract(self) -> Callable[[Sequence[Tensor]], Tensor]:
        """The same by `sumprod.ops.contraction.contract`, for which every factor has the plate as a dim."""
        names = [dims if self.plate in dims else self.plate + dims for dims in self.dims]

        def call(tensors: Sequence[Tensor]) -> Tensor:
            parts = [part for _, part in contract(tensors, names, self.plate, keep_common_plates=True)]
            return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

        return call


def gradients(total: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Totals, and the gradients of their sum with respect to every factor."""
    value = total(leaves)
    return (value.detach(), *torch.autograd.grad(value.sum(), list(leaves)))
