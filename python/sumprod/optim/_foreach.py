"""What our own torch optimisers have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

Closure = Callable[[], Any] | None


class ForeachOptimizer(Optimizer):
    """A torch optimiser that updates all tensors of a parameter group in one call."""

    separable: ClassVar[bool] = True

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:  # type: ignore[override, unused-ignore]
        """One step for all parameters with a gradient; returns what `closure` returns, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            leaves, grads = with_gradients(group["params"], type(self).__name__)
            if leaves:
                self._step(leaves, grads, group)
        return loss

    def _step(self, leaves: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update `leaves` by their gradients, with the options of their group."""
        raise NotImplementedError(type(self).__name__)


def with_gradients(leaves: list[torch.Tensor], name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The leaves that have a gradient, and the gradients. Raises NotImplementedError for a sparse one."""
    chosen, grads = [], []
    for leaf in leaves:
        grad = leaf.grad
        if grad is not None:
            if grad.layout != torch.strided:
                raise NotImplementedError(
                    f"{name} cannot use the sparse gradient of a parameter of shape {tuple(leaf.shape)}; use "
                    "SparseAdam or SGD, or a dense gradient"
                )
            chosen.append(leaf)
            grads.append(grad)
    return chosen, grads
