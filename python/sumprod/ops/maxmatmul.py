"""`maxmatmul`: the matrix product in the max-plus semiring, with the maximising index."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sumprod._native import ops as native
from sumprod.ops._matrix_arguments import canonical, merge_mapped, product_shape

__all__ = ["MaxMatmul", "maxmatmul"]


class MaxMatmul(NamedTuple):
    """What `maxmatmul` returns."""

    values: Tensor
    """[*, I, K]: max_j x_ij + y_jk."""
    indices: Tensor
    """[*, I, K], int64: the lowest j that reaches it."""


def maxmatmul(x: Tensor, y: Tensor) -> MaxMatmul:
    """Matrix product with sums as maxima and products as sums: max_j x_ij + y_jk, and the j that does it.

    One step of the Viterbi recursion (Viterbi 1967), and the block of its associative scan.

    Args:
        x: [*, I, J].
        y: [*, J, K]; batch dims broadcast, without being copied.

    Returns:
        `MaxMatmul(values [*, I, K], indices [*, I, K] int64)`, values in the promoted dtype (half
        types are computed in float32). Ties go to the lowest j. NaN wins over everything; its index
        is that of the first NaN. All -inf, and an empty J, give -inf and index 0.

    The values are differentiable any number of times: the gradient goes to the two entries that
    were added. -inf has zero gradient.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, sumprod
        >>> x, y = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 5.0], [0.0, 9.0]])
        >>> values, indices = sumprod.ops.maxmatmul(x, y)
        >>> values.tolist(), indices.tolist()
        ([[1.0, 10.0]], [[0, 1]])
    """
    x, y, dtype = canonical("maxmatmul", x, y)
    wants_grad = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if not torch.compiler.is_compiling():
        wants_grad = (
            wants_grad or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        )
    if wants_grad:
        values, indices = native.maxmatmul(x.detach(), y.detach())
        if x.shape[-1] > 0:
            values = torch.where(values == -torch.inf, values, _chosen_sums(x, y, indices))
    else:
        values, indices = native.maxmatmul(x, y)
    return MaxMatmul(values if values.dtype == dtype else values.to(dtype), indices)


def _chosen_sums(x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
    """x_ij + y_jk at the given j, differentiable."""
    batch = indices.shape[:-2]
    left = x.expand(*batch, *x.shape[-2:]).gather(-1, indices)
    return left + y.expand(*batch, *y.shape[-2:]).gather(-2, indices)


@torch.library.register_fake("sumprod::maxmatmul")
def _fake(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    shape = product_shape(x, y)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


@torch.library.register_vmap("sumprod::maxmatmul")
def _vmap(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return native.maxmatmul(*merge_mapped(in_dims, x, y)), (0, 0)
