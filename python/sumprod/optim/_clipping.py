"""Gradient clipping, for many parameters in few operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

_KEYS = ("clip_norm", "clip_value", "clip_global")


def checked_clip_args(arguments: Any, where: str) -> dict[str, Any]:
    """A copy of the dict. Raises TypeError for anything else, and for an unknown key."""
    if not isinstance(arguments, Mapping):
        raise TypeError(f"{where}: expected a dict with some of {', '.join(_KEYS)}, got {arguments!r}")
    unknown = [key for key in arguments if key not in _KEYS]
    if unknown:
        raise TypeError(f"{where}: unknown {unknown}; expected some of {', '.join(_KEYS)}")
    return dict(arguments)


def clip_gradients(leaves: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> None:
    """Clips gradients in place: first to the norm `clip_norm`, then each element to `clip_value`.

    The norm is that of each parameter by itself, or with `clip_global` that of all of `leaves` together.
    """
    with_grad = [leaf for leaf in leaves if leaf.grad is not None]
    norm, value = arguments.get("clip_norm"), arguments.get("clip_value")
    if norm is not None and with_grad:
        if arguments.get("clip_global"):
            clip_grad_norm_(with_grad, norm)
        else:
            _clip_each_norm(with_grad, float(norm))
    if value is not None and with_grad:
        clip_grad_value_(with_grad, value)


def _clip_each_norm(leaves: Sequence[torch.Tensor], max_norm: float) -> None:
    """What clip_grad_norm_ does for each leaf alone."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for leaf in leaves:
        grad = leaf.grad
        assert grad is not None
        if grad.layout != torch.strided:
            # torch has no norm of a sparse tensor with repeated indices.
            norm = grad.coalesce().values().norm()
            grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        else:
            groups.setdefault((grad.device, grad.dtype), []).append(grad.detach())
    for grads in groups.values():
        norms = torch.stack(torch._foreach_norm(grads))
        factors = (max_norm / (norms + 1e-6)).clamp_(max=1.0)
        torch._foreach_mul_(grads, list(factors.unbind()))
