"""The step-size sequence of automatic differentiation variational inference, as a torch optimiser."""

from __future__ import annotations

from typing import Any

import torch

from sumprod.optim._foreach import ForeachOptimizer

__all__ = ["AdagradRMSProp"]


class AdagradRMSProp(ForeachOptimizer):
    """AdaGrad's decaying step size with RMSProp's forgetting average.

    In step i, with gradient g and elementwise,

        s_i = t g^2 + (1 - t) s_{i-1},   s_1 = g^2
        p  <-  p - eta i^(-1/2 + delta) g / (1 + sqrt(s_i))

    `params` are tensors or parameter groups, `eta` is the step size (1.0 is a robust choice), `delta` a small
    positive number, `t` the weight of the newest squared gradient, between 0 and 1.

    Raises ValueError for options outside these ranges, NotImplementedError for sparse gradients.

    Equations 10 and 11 of Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic Differentiation
    Variational Inference", JMLR 18(14), with the constant tau = 1.
    """

    def __init__(self, params: Any, eta: float = 1.0, delta: float = 1e-16, t: float = 0.1) -> None:
        if not eta >= 0:
            raise ValueError(f"eta must be at least 0, got {eta}")
        if not 0 <= t <= 1:
            raise ValueError(f"t must be between 0 and 1, got {t}")
        super().__init__(params, {"eta": eta, "delta": delta, "t": t})

    def _step(self, leaves: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        sums, squares, factors, old = [], [], [], []
        for leaf, grad in zip(leaves, grads, strict=True):
            state = self.state[leaf]
            if state:
                old.append(state["sum"])
                squares.append(grad)
            else:
                state["step"], state["sum"] = 0, grad * grad
            state["step"] += 1
            sums.append(state["sum"])
            factors.append(-group["eta"] * state["step"] ** (group["delta"] - 0.5))
        if old:
            torch._foreach_mul_(old, 1 - group["t"])
            torch._foreach_addcmul_(old, squares, squares, value=group["t"])
        denominators = torch._foreach_sqrt(sums)
        torch._foreach_add_(denominators, 1.0)
        torch._foreach_addcdiv_(leaves, grads, denominators, factors)
