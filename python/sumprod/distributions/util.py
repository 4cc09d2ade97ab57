"""Helpers on distributions and their tensors."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from sumprod import settings
from sumprod.ops import logsumexp

__all__ = [
    "broadcast_shape",
    "copy_docs_from",
    "enable_validation",
    "eye_like",
    "gather",
    "is_identically_one",
    "is_identically_zero",
    "is_validation_enabled",
    "logsumexp",
    "scalar_like",
    "scale_and_mask",
    "sum_leftmost",
    "sum_rightmost",
    "validation_enabled",
    "weakmethod",
]

F = TypeVar("F", bound=Callable[..., Any])


def is_identically_zero(x: Any) -> bool:
    """Whether `x` is a number equal to zero; a tensor never is, so that no device is waited for."""
    return isinstance(x, int | float) and x == 0


def is_identically_one(x: Any) -> bool:
    """Whether `x` is a number equal to one."""
    return isinstance(x, int | float) and x == 1


def broadcast_shape(*shapes: Any, strict: bool = False) -> tuple[int, ...]:
    """The shape to which shapes broadcast.

    Args:
        shapes: tuples of sizes.
        strict: sizes must be equal: 1 does not stretch.

    Raises:
        ValueError: they do not broadcast.
    """
    reversed_shape: list[int] = []
    for shape in shapes:
        for i, size in enumerate(reversed(shape)):
            if i >= len(reversed_shape):
                reversed_shape.append(size)
            elif reversed_shape[i] == 1 and not strict:
                reversed_shape[i] = size
            elif reversed_shape[i] != size and (size != 1 or strict):
                raise ValueError(f"shape mismatch: objects cannot be broadcast to a single shape: {shapes}")
    return tuple(reversed(reversed_shape))


def gather(value: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """`value.gather(dim, index)` after broadcasting; `index` has size 1 at the negative `dim`."""
    shape = list(broadcast_shape(value.shape, index.shape))
    source = shape.copy()
    source[dim] = value.shape[dim]
    shape[dim] = index.shape[dim]
    return value.expand(source).gather(dim, index.expand(shape))


def sum_rightmost(value: Any, dim: int | float) -> Any:
    """Sum out the `dim` rightmost dims; inf: all; a negative `-n` leaves the n leftmost."""
    if isinstance(value, int | float) or dim == 0:
        return value
    if dim == float("inf"):
        return value.sum()
    keep = value.dim() - dim if dim > 0 else -dim
    return value.reshape(*value.shape[: int(keep)], -1).sum(-1)


def sum_leftmost(value: Any, dim: int | float) -> Any:
    """Sum out the `dim` leftmost dims; inf: all; a negative `-n` leaves the n rightmost."""
    if isinstance(value, int | float) or dim == 0:
        return value
    if dim == float("inf"):
        return value.sum()
    first = int(dim if dim > 0 else value.dim() + dim)
    return value.reshape(-1, *value.shape[first:]).sum(0)


def scale_and_mask(tensor: Any, scale: float | torch.Tensor = 1.0, mask: Any = None) -> Any:
    """`tensor * scale` where the mask holds, else 0.

    The mask selects, it does not multiply: -inf and NaN outside it leak neither into the value nor into
    the gradient.
    """
    if is_identically_zero(tensor) or (mask is None and is_identically_one(scale)):
        return tensor
    if mask is None or mask is True:
        return tensor * scale
    if mask is False:
        return torch.zeros_like(tensor) if isinstance(tensor, torch.Tensor) else 0.0
    if not isinstance(tensor, torch.Tensor):
        tensor = torch.as_tensor(float(tensor), device=mask.device)
    tensor = torch.where(mask, tensor, tensor.new_zeros(()))
    return tensor if is_identically_one(scale) else tensor * scale


def scalar_like(prototype: torch.Tensor, fill_value: float) -> torch.Tensor:
    """A 0-d tensor of the prototype's dtype and device."""
    return torch.tensor(fill_value, dtype=prototype.dtype, device=prototype.device)


def eye_like(value: torch.Tensor, m: int, n: int | None = None) -> torch.Tensor:
    """An identity matrix, m by n, of the dtype and device of `value`."""
    return torch.eye(m, m if n is None else n, dtype=value.dtype, device=value.device)


def weakmethod(fn: F) -> F:
    """Let a bound method of an attribute hold its owner by a weak reference only."""

    @functools.wraps(fn)
    def weak(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(weakref.ref(self)(), *args, **kwargs)

    return weak  # type: ignore[return-value]


def copy_docs_from(source_class: type, full_text: bool = False) -> Callable[[type], type]:
    """A class decorator: methods without a docstring get that of the source's method of the name."""

    def decorate(cls: type) -> type:
        for name, member in vars(cls).items():
            if name.startswith("_") or getattr(member, "__doc__", None):
                continue
            doc = getattr(getattr(source_class, name, None), "__doc__", None)
            if doc and callable(member):
                where = f"{source_class.__module__}.{source_class.__qualname__}.{name}"
                member.__doc__ = doc if full_text else f"See :meth:`{where}`"
        return cls

    return decorate


def enable_validation(is_validate: bool = True) -> None:
    """Switch the checks of distributions, torch's and our own, on or off."""
    settings.set(validate_distributions_pyro=is_validate, validate_distributions_torch=is_validate)


def is_validation_enabled() -> bool:
    """Whether distributions check their arguments and values."""
    return settings.state.validate_distributions_pyro


@contextmanager
def validation_enabled(is_validate: bool = True) -> Iterator[None]:
    """`enable_validation` inside a `with` block; the old values come back after it."""
    with settings.context(
        validate_distributions_pyro=is_validate, validate_distributions_torch=is_validate
    ):
        yield
