"""Tests for NaN and infinity that accept numbers and tensors, and warnings when one turns up."""

from __future__ import annotations

import math
import sys
import warnings
from numbers import Number
from typing import TypeVar

import torch

__all__ = ["torch_isinf", "torch_isnan", "warn_if_inf", "warn_if_nan"]

Value = TypeVar("Value", torch.Tensor, float)


def torch_isnan(x: torch.Tensor | float) -> bool | torch.Tensor:
    """Whether any element is NaN: a bool for a number; for a tensor a 0-d bool tensor, without waiting."""
    if isinstance(x, torch.Tensor):
        return torch.isnan(x).any()
    return isinstance(x, Number) and x != x


def torch_isinf(x: torch.Tensor | float) -> bool | torch.Tensor:
    """Whether any element is +inf or -inf: a bool for a number, a 0-d bool tensor for a tensor."""
    if isinstance(x, torch.Tensor):
        return torch.isinf(x).any()
    return x in (math.inf, -math.inf)


def _warn(what: str, msg: str, filename: str, lineno: int) -> None:
    text = f"Encountered {what}" + (f": {msg}" if msg else "")
    warnings.warn_explicit(text, UserWarning, filename, lineno)


def _caller(filename: str | None, lineno: int | None) -> tuple[str, int]:
    """The line that called the public function: a hook that runs in `backward` has no such frame left."""
    if filename is not None and lineno is not None:
        return filename, lineno
    frame = sys._getframe(2)
    return filename or frame.f_code.co_filename, lineno or frame.f_lineno


def warn_if_nan(
    value: Value, msg: str = "", *, filename: str | None = None, lineno: int | None = None
) -> Value:
    """Returns `value`; gives a UserWarning `Encountered NaN: msg` when it holds a NaN.

    For a tensor that requires grad, the gradient that arrives in `backward` is checked too. Reading the
    answer waits for the device of the tensor. `filename` and `lineno` replace the place that is reported.

        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = warn_if_nan(float("nan"), "loss")
        >>> str(caught[0].message)
        'Encountered NaN: loss'
    """
    if isinstance(value, torch.Tensor):
        if value.requires_grad:
            place = _caller(filename, lineno)
            value.register_hook(lambda grad: _check_nan(grad, f"backward {msg}".rstrip(), *place))
        if torch.isnan(value).any():
            _warn("NaN", msg, *_caller(filename, lineno))
    elif value != value:
        _warn("NaN", msg, *_caller(filename, lineno))
    return value


def _check_nan(value: torch.Tensor, msg: str, filename: str, lineno: int) -> None:
    if torch.isnan(value).any():
        _warn("NaN", msg, filename, lineno)


def warn_if_inf(
    value: Value,
    msg: str = "",
    allow_posinf: bool = False,
    allow_neginf: bool = False,
    *,
    filename: str | None = None,
    lineno: int | None = None,
) -> Value:
    """Returns `value`; gives a UserWarning `Encountered +inf: msg` (or `-inf`) when it holds one.

    `allow_posinf` and `allow_neginf` switch one sign off. For a tensor that requires grad, the gradient
    that arrives in `backward` is checked in the same way.
    """
    place = _caller(filename, lineno)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value.register_hook(
            lambda grad: _check_inf(grad, f"backward {msg}".rstrip(), allow_posinf, allow_neginf, place)
        )
    _check_inf(value, msg, allow_posinf, allow_neginf, place)
    return value


def _check_inf(
    value: torch.Tensor | float, msg: str, allow_posinf: bool, allow_neginf: bool, place: tuple[str, int]
) -> None:
    for sign, allowed, name in ((math.inf, allow_posinf, "+inf"), (-math.inf, allow_neginf, "-inf")):
        if not allowed:
            found = value == sign
            if found.any() if isinstance(found, torch.Tensor) else found:
                _warn(name, msg, *place)
