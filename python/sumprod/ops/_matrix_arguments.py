"""What the matrix products over other semirings share: argument checks and rules for transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from sumprod.ops._devices import require_kernels

_HALF = (torch.float16, torch.bfloat16)


def _check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in (torch.float32, torch.float64, *_HALF):
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {value.dtype}")
    if value.dim() < 2:
        raise ValueError(
            f"{op}: {name} must be a matrix or a batch of matrices, got shape {list(value.shape)}"
        )


def _broadcast(x: Tensor, y: Tensor) -> bool:
    pairs = zip(reversed(x.shape[:-2]), reversed(y.shape[:-2]), strict=False)
    return all(a == b or a == 1 or b == 1 for a, b in pairs)


def canonical(op: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Checks x [*, I, J] and y [*, J, K]; returns them in the dtype to compute in, and that of the result.

    Raises:
        TypeError: something is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.
    """
    _check_tensor(op, "x", x)
    _check_tensor(op, "y", y)
    if x.device != y.device:
        raise ValueError(f"{op}: x and y must be on one device; x is on {x.device}, y on {y.device}")
    if not x.is_cpu:
        require_kernels(op, x.device)
    if x.shape[-1] != y.shape[-2]:
        raise ValueError(
            f"{op}: expected x [*, I, J] and y [*, J, K] with the same J, "
            f"got {list(x.shape)} and {list(y.shape)}"
        )
    if not _broadcast(x, y):
        raise ValueError(f"{op}: the batch dims of x {list(x.shape)} and y {list(y.shape)} do not broadcast")
    dtype = x.dtype if x.dtype == y.dtype else torch.promote_types(x.dtype, y.dtype)
    compute = torch.float32 if dtype in _HALF else dtype
    return x.to(compute), y.to(compute), dtype


def product_shape(x: Tensor, y: Tensor) -> list[int]:
    """The shape [*, I, K] of a product."""
    return [*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]]


def merge_mapped(in_dims: tuple[int | None, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Moves mapped dims in front of all batch dims of both, so that they broadcast as one more."""
    ranks = [t.dim() - (dim is not None) for t, dim in zip((x, y), in_dims, strict=True)]
    merged = []
    for tensor, dim, rank in zip((x, y), in_dims, ranks, strict=True):
        if dim is not None:
            tensor = tensor.movedim(dim, 0)
            missing = (1,) * (max(ranks) - rank)
            tensor = tensor.reshape(tensor.shape[0], *missing, *tensor.shape[1:])
        merged.append(tensor)
    return merged[0], merged[1]
