"""Cheap checks of parameters and values.

Each function returns True when its condition surely holds, at the price of one or two operators and no
autograd node. False means "look closer": the caller then runs torch's own check, which either passes or
raises torch's error. So a check here must never be True by mistake, but may be False.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.compiler import is_compiling
from torch.distributions import constraints

__all__ = [
    "eager",
    "is_boolean",
    "is_count",
    "is_finite",
    "is_nonnegative",
    "is_positive",
    "is_real",
    "is_simplex",
    "is_within",
    "satisfied",
]


_LARGEST = sys.float_info.max


def eager() -> bool:
    """Whether values can be looked at: not under torch.compile, vmap and the like, or a tracing mode."""
    return not (is_compiling() or peek_interpreter_stack() is not None or _len_torch_dispatch_stack())


def is_real(x: Tensor) -> bool:
    """No NaN."""
    if x.dim() == 0:
        value = x.item()
        return bool(value == value)
    return torch.equal(x, x)


def is_finite(x: Tensor) -> bool:
    """No NaN and no infinity."""
    return is_within(x, -_LARGEST, _LARGEST)


def is_positive(x: Tensor, bound: float = 0.0) -> bool:
    """All of `x` exceeds `bound`."""
    if x.dim() == 0:
        return bool(x.item() > bound)
    return x.numel() == 0 or bool(x.detach().min().item() > bound)


def is_nonnegative(x: Tensor, bound: float = 0.0) -> bool:
    """All of `x` is at least `bound`."""
    if x.dim() == 0:
        return bool(x.item() >= bound)
    return x.numel() == 0 or bool(x.detach().min().item() >= bound)


def is_within(x: Tensor, low: float, high: float) -> bool:
    """All of `x` is in the closed interval."""
    if x.dim() == 0:
        return bool(low <= x.item() <= high)
    if x.numel() == 0:
        return True
    least, most = torch.aminmax(x.detach())
    return bool(low <= least.item() and most.item() <= high)


def is_boolean(x: Tensor) -> bool:
    """All of `x` is 0 or 1."""
    if x.dim() == 0:
        return x.item() in (0, 1)
    x = x.detach()
    return x.dtype == torch.bool or torch.equal(x.bool().to(x.dtype), x)


def is_count(x: Tensor, low: float = 0, high: float = math.inf) -> bool:
    """All of `x` is a finite whole number in the closed interval."""
    if x.dim() == 0:
        value = x.item()
        return bool(low <= value <= high and value % 1 == 0)
    if not is_within(x, low, high):
        return False
    if not x.is_floating_point():
        return True
    # The remainder of an infinity is NaN, and NaN is no zero.
    return not bool(torch.remainder(x.detach(), 1).any().item())


def is_simplex(x: Tensor) -> bool:
    """Not negative, and each row sums to one, to torch's tolerance."""
    x = x.detach()
    if x.numel() == 0:
        return False
    return bool(x.min().item() >= 0 and (x.sum(-1) - 1).abs().max().item() < 1e-6)


def _number(bound: Any) -> bool:
    return isinstance(bound, (int, float))


_RULES: dict[type, Callable[[Any, Tensor], bool]] = {
    type(constraints.real): lambda c, x: is_real(x),
    type(constraints.positive): lambda c, x: _number(c.lower_bound) and is_positive(x, c.lower_bound),
    type(constraints.nonnegative): lambda c, x: _number(c.lower_bound) and is_nonnegative(x, c.lower_bound),
    type(constraints.unit_interval): lambda c, x: (
        _number(c.lower_bound) and _number(c.upper_bound) and is_within(x, c.lower_bound, c.upper_bound)
    ),
    type(constraints.boolean): lambda c, x: is_boolean(x),
    type(constraints.nonnegative_integer): lambda c, x: _number(c.lower_bound) and is_count(x, c.lower_bound),
    constraints.integer_interval: lambda c, x: (
        _number(c.lower_bound) and _number(c.upper_bound) and is_count(x, c.lower_bound, c.upper_bound)
    ),
    type(constraints.simplex): lambda c, x: is_simplex(x),
    constraints.independent: lambda c, x: satisfied(c.base_constraint, x),
}


def satisfied(constraint: Any, x: Tensor) -> bool:
    """Whether `x` surely satisfies a constraint. False where no rule is cheap."""
    rule = _RULES.get(type(constraint))
    return rule is not None and rule(constraint, x)
