"""Small functions on shapes, zeros and masks, shared by distributions and inference."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from sumprod import settings
from sumprod.ops import logsumexp

__all__ = [
    "broadcast_all",
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

_Class = TypeVar("_Class", bound=type)


def is_identically_zero(x: Any) -> bool:
    """Whether `x` is the Python number zero. False for every tensor: its values are not looked at."""
    return isinstance(x, (int, float)) and x == 0


def is_identically_one(x: Any) -> bool:
    """Whether `x` is the Python number one. False for every tensor: its values are not looked at."""
    return isinstance(x, (int, float)) and x == 1


def broadcast_shape(*shapes: Any, strict: bool = False) -> tuple[int, ...]:
    """The shape that tensors of the given shapes broadcast to.

    Args:
        shapes: sequences of sizes.
        strict: refuse to enlarge a dim of size 1.

    Raises:
        ValueError: the shapes do not agree; all of them are in the text.

    Example:
        >>> broadcast_shape((3, 1), (4,))
        (3, 4)
    """
    result: list[int] = []
    for shape in shapes:
        missing = len(shape) - len(result)
        if missing > 0:
            result[:0] = shape[:missing]
        start = len(result) - len(shape)
        for i, size in enumerate(shape[missing:] if missing > 0 else shape, start + max(missing, 0)):
            if result[i] != size:
                if strict or (result[i] != 1 and size != 1):
                    raise ValueError(
                        "shape mismatch: objects cannot be broadcast to a single shape: "
                        + " vs ".join(str(tuple(s)) for s in shapes)
                    )
                if result[i] == 1:
                    result[i] = size
    return tuple(result)


def sum_rightmost(value: Any, dim: float) -> Any:
    """Sum out the `dim` rightmost dims; with a negative `dim`, all but the `-dim` leftmost.

    More dims than there are (or `math.inf`) sums everything. A number is returned as it is.

    Example:
        >>> sum_rightmost(torch.ones(2, 3, 4), 1).shape, sum_rightmost(torch.ones(2, 3, 4), -1).shape
        (torch.Size([2, 3]), torch.Size([2]))
    """
    if isinstance(value, (int, float)):
        return value
    if dim < 0:
        dim += value.dim()
    if dim == 0:
        return value
    if dim >= value.dim():
        return value.sum()
    return value.sum(tuple(range(-int(dim), 0)))


def sum_leftmost(value: Any, dim: float) -> Any:
    """Sum out the `dim` leftmost dims; with a negative `dim`, all but the `-dim` rightmost.

    Example:
        >>> sum_leftmost(torch.ones(2, 3, 4), 1).shape, sum_leftmost(torch.ones(2, 3, 4), -1).shape
        (torch.Size([3, 4]), torch.Size([4]))
    """
    if isinstance(value, (int, float)):
        return value
    if dim < 0:
        dim += value.dim()
    if dim == 0:
        return value
    if dim >= value.dim():
        return value.sum()
    return value.sum(tuple(range(int(dim))))


def scale_and_mask(tensor: Any, scale: Any = 1.0, mask: Any = None) -> Any:
    """`tensor * scale` where `mask`, and zero elsewhere.

    Masked-out entries are replaced, not multiplied by zero, so an infinity or a NaN there reaches neither
    the result nor the gradient with respect to `tensor`.

    Args:
        tensor: a tensor, or a number.
        scale: a positive number, or a tensor that broadcasts with `tensor`.
        mask: None or True (keep all), False (drop all), or a bool tensor that broadcasts with `tensor`.
    """
    if is_identically_zero(tensor) or ((mask is None or mask is True) and is_identically_one(scale)):
        return tensor
    if mask is False:
        return torch.zeros_like(tensor) if isinstance(tensor, Tensor) else 0.0
    scaled = tensor if is_identically_one(scale) else tensor * scale
    if mask is None or mask is True:
        return scaled
    if not isinstance(scaled, Tensor):
        scaled = torch.as_tensor(scaled, device=mask.device)
    return torch.where(mask, scaled, scaled.new_zeros(()))


def gather(value: Tensor, index: Tensor, dim: int) -> Tensor:
    """`value.gather(dim, index)` where all other dims broadcast.

    Args:
        value: any tensor.
        index: int64 tensor. Its dim `dim` is the number of entries to take.
        dim: negative, the dim to index.
    """
    if dim >= 0:
        raise ValueError(f"gather expected a negative dim, got {dim}; count dims from the right")
    rank = max(value.dim(), index.dim(), -dim)
    value = value.expand((1,) * (rank - value.dim()) + value.shape)
    index = index.expand((1,) * (rank - index.dim()) + index.shape)
    shape = list(broadcast_shape(_without(value.shape, dim), _without(index.shape, dim)))
    position = rank + dim
    value = value.expand([*shape[:position], value.shape[dim], *shape[position:]])
    index = index.expand([*shape[:position], index.shape[dim], *shape[position:]])
    return value.gather(dim, index)


def _without(shape: torch.Size, dim: int) -> tuple[int, ...]:
    sizes = list(shape)
    del sizes[dim]
    return tuple(sizes)


def scalar_like(prototype: Tensor, fill_value: Any) -> Tensor:
    """A tensor of shape () with dtype and device of `prototype`."""
    return torch.full((), fill_value, dtype=prototype.dtype, device=prototype.device)


def eye_like(value: Tensor, m: int, n: int | None = None) -> Tensor:
    """The m x n (or m x m) identity matrix with dtype and device of `value`."""
    return torch.eye(m, m if n is None else n, dtype=value.dtype, device=value.device)


def weakmethod(fn: Callable[..., Any]) -> property:
    """Decorator: a method whose bound form does not keep its object alive.

    Such a bound method may be stored inside the object itself without making a reference cycle.
    """

    def get(self: Any) -> Callable[..., Any]:
        return functools.partial(_call_weakly, fn, weakref.ref(self))

    return property(get, doc=fn.__doc__)


def _call_weakly(fn: Callable[..., Any], reference: weakref.ref[Any], /, *args: Any, **kwargs: Any) -> Any:
    target = reference()
    if target is None:
        raise ReferenceError(f"the object whose method {fn.__qualname__} was called no longer exists")
    return fn(target, *args, **kwargs)


def copy_docs_from(source_class: type, full_text: bool = False) -> Callable[[_Class], _Class]:
    """Decorator of a class: methods without a docstring get that of the same method in `source_class`.

    Args:
        source_class: where to read.
        full_text: copy the whole text; otherwise only a reference to it.
    """

    def decorator(destination: _Class) -> _Class:
        for name, member in vars(destination).items():
            if name.startswith("_") or getattr(member, "__doc__", None):
                continue
            source = getattr(source_class, name, None)
            doc = getattr(source, "__doc__", None)
            if not doc:
                continue
            text = (
                doc
                if full_text
                else f"See :meth:`{source_class.__module__}.{source_class.__qualname__}.{name}`"
            )
            if callable(member):
                member.__doc__ = text
            elif isinstance(member, property):
                setattr(destination, name, property(member.fget, member.fset, member.fdel, text))
        return destination

    return decorator


def enable_validation(is_validate: bool = True) -> None:
    """Switch the checks of distributions on or off, for ours and for torch's own."""
    settings.set(validate_distributions_pyro=is_validate, validate_distributions_torch=is_validate)


def is_validation_enabled() -> bool:
    """Whether distributions check parameters and values."""
    return settings.state.validate_distributions_pyro


@contextmanager
def validation_enabled(is_validate: bool = True) -> Iterator[None]:
    """Switch the checks of distributions inside a `with` block, then restore what was set before."""
    with settings.context(validate_distributions_pyro=is_validate, validate_distributions_torch=is_validate):
        yield
