"""Sums of table entries at many indices: out[n, s] = sum_k table[s, k, index[n, k]].

A gather of all entries would be of size S N K, and its gradient of size S N K V. The sum is linear in the
table, so that its gradient is the transposed sum, and the gradient of that the sum again.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

__all__ = ["counts", "summed_rows"]

_FEW = 24  # values; for fewer, a product with indicators of each value is faster than to sort the indices


def summed_rows(table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """sum_k table[..., s, k, index[..., n, k]] over those k where the mask is True.

    Args:
        table: (..., S, K or 1, V), of at most one batch dim. Entries may be -inf, and so is a sum with one.
        index: (..., N, K) of int64, in 0..V-1.
        mask: (..., N, K) of dtype bool.

    Returns:
        (..., N, S). Memory and work of the derivatives are O(N K + N S + K V S).
    """
    if mask is not None:
        index = torch.where(mask, index, table.shape[-1])
        table = pad(table, (0, 1))  # what is masked out finds 0
    table = table.expand(*table.shape[:-2], index.shape[-1], -1)
    batched = table.dim() == 4
    if not batched:
        table, index = table.unsqueeze(0), index.unsqueeze(0)
    total = _RowSums.apply(table.permute(0, 2, 3, 1), index)  # type: ignore[no-untyped-call]
    return total if batched else total.squeeze(0)  # type: ignore[no-any-return]


def counts(index: Tensor, mask: Tensor | None, values: int) -> Tensor:
    """How often each value is in the rows (..., N, K) of an index where the mask is True: (..., N, V)."""
    rows = index.flatten(0, -2)
    rows = rows + values * torch.arange(len(rows), device=index.device).unsqueeze(-1)
    rows = rows.flatten() if mask is None else rows[mask.flatten(0, -2)]
    shape = (*index.shape[:-1], values)
    return torch.bincount(rows, minlength=prod(shape)).view(shape)


def _rows(index: Tensor, values: int) -> Tensor:
    """Rows of the table (batch K V, S) for indices (batch, N, K), as (batch N, K)."""
    batch, _, width = index.shape
    first = torch.arange(0, batch * width * values, values, device=index.device)
    return (index + first.view(batch, 1, width)).flatten(0, 1)


class _RowSums(torch.autograd.Function):
    """(batch, K, V, S) and indices (batch, N, K) -> (batch, N, S)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.values = table.shape[2]
        rows = _rows(index, ctx.values)
        sums = embedding_bag(rows, table.reshape(-1, table.shape[-1]).contiguous(), mode="sum")
        return sums.view(*index.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _Scattered.apply(grad, index, ctx.values), None  # type: ignore[no-untyped-call]


class _Scattered(torch.autograd.Function):
    """(batch, N, S), indices (batch, N, K) and V -> (batch, K, V, S): the transpose of `_RowSums`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, index: Tensor, values: int) -> Tensor:
        ctx.save_for_backward(index)
        scattered = _by_value if values <= _FEW else _by_sorting
        return scattered(grad.contiguous(), index, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _RowSums.apply(grad, index), None, None  # type: ignore[no-untyped-call]


def _by_value(grad: Tensor, index: Tensor, values: int) -> Tensor:
    found = grad.new_empty(index.shape[0], index.shape[2], values, grad.shape[-1])
    index = index.to(torch.uint8)
    indicator = torch.empty(index.shape, dtype=grad.dtype, device=grad.device)
    for value in range(values):
        torch.eq(index, value, out=indicator)
        found[:, :, value] = indicator.mT @ grad
    return found


def _by_sorting(grad: Tensor, index: Tensor, values: int) -> Tensor:
    batch, _, width = index.shape
    rows = _rows(index, values).flatten()
    counts = torch.bincount(rows, minlength=batch * width * values)
    elements = rows.argsort() // width
    found = embedding_bag(elements, grad.flatten(0, 1), counts.cumsum(0) - counts, mode="sum")
    return found.view(batch, width, values, -1)
