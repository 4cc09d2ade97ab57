"""What our own torch optimisers have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Closure = Callable[[], Any] | None


def evaluate(closure: Closure) -> Any:
    """The result of `closure`, with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


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
