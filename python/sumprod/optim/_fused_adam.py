"""Steps of a fused Adam that do not collect its lists each time, which costs more than the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


class FusedAdamPlan:
    """The lists that `torch.optim.Adam(fused=True)` hands to its kernel, for leaves that have been stepped.

    `step` does what the optimiser's `step` does, with the same kernel and so the same bits. The plan holds
    while the optimiser steps these leaves and nothing replaces its state.
    """

    __slots__ = ("_group", "_leaves", "_means", "_optimizer", "_squares", "_state", "_steps")

    def __init__(self, optimizer: Optimizer, leaves: Sequence[torch.Tensor]) -> None:
        states = [optimizer.state[leaf] for leaf in leaves]
        self._optimizer = optimizer
        self._group = optimizer.param_groups[0]
        self._state = optimizer.state
        self._leaves = list(leaves)
        self._means = [state["exp_avg"] for state in states]
        self._squares = [state["exp_avg_sq"] for state in states]
        self._steps = [state["step"] for state in states]

    @staticmethod
    def make(optimizer: Optimizer, leaves: Sequence[torch.Tensor]) -> FusedAdamPlan | None:
        """A plan, or None while a leaf has no state yet."""
        if any("step" not in optimizer.state.get(leaf, ()) for leaf in leaves):
            return None
        return FusedAdamPlan(optimizer, leaves)

    @staticmethod
    def fits(optimizer: Optimizer, leaves: Sequence[torch.Tensor]) -> bool:
        """Whether a plan may be made for this optimiser and these leaves."""
        group: dict[str, Any] = optimizer.param_groups[0]
        return (
            type(optimizer) in (Adam, AdamW)
            and bool(group["fused"])
            and not group["amsgrad"]
            and len({(leaf.dtype, leaf.device) for leaf in leaves}) == 1
        )

    @property
    def holds(self) -> bool:
        """Whether options and state are still those of the plan; `load_state_dict` replaces both."""
        optimizer = self._optimizer
        return (
            optimizer.state is self._state
            and len(optimizer.param_groups) == 1
            and optimizer.param_groups[0] is self._group
        )

    def step(self) -> bool:
        """One step; or False, and nothing done, when only the optimiser itself can do it."""
        optimizer, group = self._optimizer, self._group
        lr, (b1, b2) = group["lr"], group["betas"]
        grads = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        if (
            len(grads) < len(self._leaves)
            or not (isinstance(lr, float | int) and isinstance(b1, float) and isinstance(b2, float))
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        ):
            return False
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        with torch.no_grad():
            torch._foreach_add_(self._steps, 1)
            kernel(
                self._leaves,
                grads,
                self._means,
                self._squares,
                [],
                self._steps,
                lr=lr,
                beta1=b1,
                beta2=b2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )
        return True
