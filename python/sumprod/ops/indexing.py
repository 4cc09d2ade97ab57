"""Indexing that broadcasts: every index is a batch of positions, whatever stands between two of them.

In programs with enumerated sites an index is a tensor of many dims, and NumPy's rule about where the
dims of advanced indices land depends on whether they are adjacent. Here they always land on the left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Index", "Vindex", "index", "vindex"]


def vindex(tensor: Tensor, args: Any) -> Tensor:
    """`tensor[args]`, where all integer and tensor indices broadcast together into batch dims.

    Args:
        tensor: of any dtype.
        args: one index or a tuple of them: integers, integer tensors, slices; lists count as tensors. A
            leading `...` declares the dims of `tensor` to its left as batch dims, which broadcast, from
            the right, with the tensor indices.

    Returns:
        The broadcast batch dims, followed by the sliced dims and those not indexed, in order. Never
        `tensor` itself.

    Raises:
        IndexError: more indices than dims, positions out of range, indices of another type.
        NotImplementedError: `...` elsewhere than in front, or `None`.

    >>> import torch
    >>> table = torch.arange(24).reshape(2, 3, 4)
    >>> i, j = torch.tensor([[0], [1]]), torch.tensor([0, 2, 3])
    >>> Vindex(table)[i, :, j].shape  # index batch [2, 3], then the slice
    torch.Size([2, 3, 3])
    >>> Vindex(table)[..., torch.tensor([1, 0])].shape  # dims [2, 3] broadcast with [2]: an error
    Traceback (most recent call last):
    IndexError: Expected indices that broadcast with the batch dims, got shapes (2, 1), (3,), (2,)
    >>> Vindex(table)[..., torch.tensor([1, 0, 3])]
    tensor([[ 1,  4, 11],
            [13, 16, 23]])
    """
    args = args if isinstance(args, tuple) else (args,)
    ellipsis = bool(args) and args[0] is Ellipsis
    args = args[1:] if ellipsis else args
    if len(args) > tensor.dim():
        raise IndexError(
            f"Expected at most {tensor.dim()} indices of a tensor of shape {tuple(tensor.shape)}, "
            f"got {len(args)}"
        )
    args = tuple(_as_index(arg) for arg in args)
    if not ellipsis:
        args += (slice(None),) * (tensor.dim() - len(args))
    rank = tensor.dim() - len(args)
    # Slices first: what is left of them covers its dim wholly.
    if any(isinstance(arg, slice) and arg != slice(None) for arg in args):
        ranges: Any = (..., *(arg if isinstance(arg, slice) else slice(None) for arg in args))
        tensor = tensor[ranges]
    positions = {rank + i: arg for i, arg in enumerate(args) if not isinstance(arg, slice)}
    if not any(isinstance(position, Tensor) for position in positions.values()):
        return tensor[tuple(positions.get(dim, slice(None)) for dim in range(tensor.dim()))]
    for dim in range(rank):
        shape = [-1] + [1] * (rank - dim - 1)
        positions[dim] = torch.arange(tensor.shape[dim], device=tensor.device).reshape(shape)
    sliced = [dim for dim in range(rank, tensor.dim()) if dim not in positions]
    indexed = sorted(positions)
    order = [*indexed, *sliced]
    if order != list(range(tensor.dim())):
        tensor = tensor.permute(order)
    try:
        return tensor[tuple([positions[dim] for dim in indexed])]
    except IndexError as error:
        if "shape mismatch" not in str(error):
            raise
        shapes = ", ".join(
            str(tuple(positions[dim].shape))
            for dim in sorted(positions)
            if isinstance(positions[dim], Tensor)
        )
        raise IndexError(
            f"Expected indices that broadcast with the batch dims, got shapes {shapes}"
        ) from error


def _as_index(arg: Any) -> int | slice | Tensor:
    if arg is Ellipsis:
        raise NotImplementedError("Non-leading Ellipsis is not supported: index the dims in between by ':'")
    if arg is None:
        raise NotImplementedError("None is not an index of a dim here: call .unsqueeze() on the result")
    if isinstance(arg, slice) or (isinstance(arg, int) and not isinstance(arg, bool)):
        return arg
    if isinstance(arg, list):
        arg = torch.as_tensor(arg)
    if not isinstance(arg, Tensor):
        raise IndexError(f"Expected an integer, a slice, or an integer tensor as index, got {arg!r}")
    if arg.dtype == torch.bool or arg.is_floating_point() or arg.is_complex():
        raise IndexError(
            f"Expected an integer tensor as index, got one of {arg.dtype}; of a mask take .nonzero()"
        )
    return arg.long()


class Vindex:
    """`Vindex(tensor)[args]` is `vindex(tensor, args)`."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __getitem__(self, args: Any) -> Tensor:
        return vindex(self._tensor, args)


def index(tensor: Tensor, args: Any) -> Tensor:
    """`tensor[args]` with torch's rules; indices that are tuples are spliced into `args`.

    A nested tuple may begin with `...` when the tuple around it does: `[..., (..., i), j]` is `[..., i, j]`.

    >>> import torch
    >>> index(torch.arange(24).reshape(2, 3, 4), (..., (1, 2)))
    tensor([ 6, 18])
    """
    return tensor[_splice(args)] if isinstance(args, tuple) else tensor[args]


def _splice(args: tuple[Any, ...]) -> tuple[Any, ...]:
    flat: list[Any] = []
    for arg in args:
        if isinstance(arg, tuple):
            inner = _splice(arg)
            # Nothing but `...` so far: one of them is enough.
            repeated = bool(inner) and inner[0] is Ellipsis and len(flat) == 1 and flat[0] is Ellipsis
            flat.extend(inner[1:] if repeated else inner)
        else:
            flat.append(arg)
    return tuple(flat)


class Index:
    """`Index(tensor)[args]` is `index(tensor, args)`."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __getitem__(self, args: Any) -> Tensor:
        return index(self._tensor, args)
