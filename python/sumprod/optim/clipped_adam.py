"""Adam with clipped gradients and a decaying learning rate, as a torch optimiser."""

from __future__ import annotations

import math
from typing import Any

import torch

from sumprod.optim._foreach import ForeachOptimizer

__all__ = ["ClippedAdam"]


class ClippedAdam(ForeachOptimizer):
    """Adam that clamps each gradient element to +-clip_norm and multiplies the learning rate by lrd per step.

    In step t of a parameter p, elementwise,

        g  <-  clamp(grad, -clip_norm, clip_norm) + weight_decay p
        m  <-  b1 m + (1 - b1) g,      v  <-  b2 v + (1 - b2) g^2
        p  <-  p - lr lrd^t sqrt(1 - b2^t) / (1 - b1^t)  m / (sqrt(v) + eps)

    With `centered_variance`, v averages (g - m)^2 with the new m instead of g^2. `params` are tensors or
    parameter groups. The clamped gradient is a temporary: `p.grad` stays as it is. Each parameter counts its
    own steps and keeps its own decay, so parameters that appear late start with the full learning rate.

    Raises ValueError for options out of range, NotImplementedError for sparse gradients.

    Kingma and Ba (2015), "Adam: A Method for Stochastic Optimization", section 2 (the form with the
    corrections moved into the step size), https://arxiv.org/abs/1412.6980.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        clip_norm: float = 10.0,
        lrd: float = 1.0,
        centered_variance: bool = False,
    ) -> None:
        for name, value in (
            ("lr", lr),
            ("eps", eps),
            ("weight_decay", weight_decay),
            ("clip_norm", clip_norm),
        ):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas must be at least 0 and below 1, got {betas}")
        if not lrd > 0:
            raise ValueError(f"lrd must be above 0, got {lrd}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "lrd": lrd,
            "centered_variance": centered_variance,
        }
        super().__init__(params, defaults)

    def _step(self, leaves: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        alike: dict[tuple[Any, ...], list[int]] = {}
        states = []
        for index, leaf in enumerate(leaves):
            state = self.state[leaf]
            if "step" not in state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(leaf, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(leaf, memory_format=torch.preserve_format)
            state["step"] += 1
            # A file by Pyro has no such entry: there the learning rate of the group has decayed.
            state["decay"] = state.get("decay", 1.0) * group["lrd"]
            states.append(state)
            alike.setdefault((state["step"], state["decay"], leaf.dtype, leaf.device), []).append(index)
        clipped = torch._foreach_clamp_min(grads, -group["clip_norm"])
        torch._foreach_clamp_max_(clipped, group["clip_norm"])
        for (step, decay, dtype, device), chosen in alike.items():
            lists = (
                [leaves[index] for index in chosen],
                [clipped[index] for index in chosen],
                [states[index]["exp_avg"] for index in chosen],
                [states[index]["exp_avg_sq"] for index in chosen],
            )
            fused = device.type in ("cpu", "cuda") and dtype in (torch.float32, torch.float64)
            update = _update_fused if fused and not group["centered_variance"] else _update
            update(*lists, step, group["lr"] * decay, group)


Tensors = list[torch.Tensor]


def _update_fused(
    leaves: Tensors,
    grads: Tensors,
    means: Tensors,
    squares: Tensors,
    step: int,
    lr: float,
    group: dict[str, Any],
) -> None:
    """Torch's fused Adam, which divides by sqrt(v / (1 - b2^t)) + eps: eps must be scaled to mean ours."""
    b1, b2 = group["betas"]
    torch._fused_adam_(
        leaves,
        grads,
        means,
        squares,
        [],
        [torch.tensor(float(step), device=leaves[0].device)] * len(leaves),
        lr=lr,
        beta1=b1,
        beta2=b2,
        weight_decay=group["weight_decay"],
        eps=group["eps"] / math.sqrt(1 - b2**step),
        amsgrad=False,
        maximize=False,
    )


def _update(
    leaves: Tensors,
    grads: Tensors,
    means: Tensors,
    squares: Tensors,
    step: int,
    lr: float,
    group: dict[str, Any],
) -> None:
    b1, b2 = group["betas"]
    if group["weight_decay"] != 0:
        torch._foreach_add_(grads, leaves, alpha=group["weight_decay"])
    torch._foreach_mul_(means, b1)
    torch._foreach_add_(means, grads, alpha=1 - b1)
    if group["centered_variance"]:
        torch._foreach_sub_(grads, means)
    torch._foreach_mul_(squares, b2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - b2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(leaves, means, roots, value=-lr * math.sqrt(1 - b2**step) / (1 - b1**step))
