"""From the results of the HMM operators to those of `DiscreteHMM`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sumprod import ops
from sumprod.ops._hmm_arguments import check_support

__all__ = ["Potentials", "draw", "held", "last", "raise_impossible"]


class Potentials(NamedTuple):
    """What the operators take, and the batch shape that the caller is to see."""

    initial: Tensor  # [*C, S], of the state that emits first
    transition: Tensor  # [S, S] or [*C, T-1 or 1, S, S]
    emission: Tensor  # [*C, T, S]
    lengths: Tensor | None  # [*C]
    batch_shape: torch.Size  # *C broadcasts to it


def last(rows: Tensor, lengths: Tensor | None, initial: Tensor) -> Tensor:
    """The last real row [*, S] of rows [*, T, S]; `initial` where there is none."""
    if rows.shape[-2] == 0:
        return initial.expand(rows.shape[:-2] + rows.shape[-1:])
    if lengths is None:
        return rows[..., -1, :]
    index = (lengths - 1).clamp(min=0)[..., None, None].expand(*lengths.shape, 1, rows.shape[-1])
    row = rows.gather(-2, index).squeeze(-2)
    return torch.where((lengths > 0).unsqueeze(-1), row, initial.to(row.dtype))


def held(rows: Tensor, lengths: Tensor | None, initial: Tensor) -> Tensor:
    """rows [*, T, S] with the last real one repeated over the padding."""
    if lengths is None or rows.shape[-2] == 0:
        return rows
    inside = torch.arange(rows.shape[-2], device=rows.device) < lengths.unsqueeze(-1)
    return torch.where(inside.unsqueeze(-1), rows, last(rows, lengths, initial).unsqueeze(-2))


def draw(model: Potentials, sample_shape: torch.Size) -> Tensor:
    """Posterior paths, sample_shape + [*C, T]."""
    paths = ops.hmm_sample(
        model.initial,
        model.transition,
        model.emission,
        lengths=model.lengths,
        num_samples=sample_shape.numel(),
    )
    return paths.reshape(sample_shape + paths.shape[1:])


def raise_impossible(method: str, model: Potentials) -> None:
    """Raises SupportError for the first impossible sequence, naming the step where it became so."""
    rows = ops.hmm_filter(
        model.initial.detach(), model.transition.detach(), model.emission.detach(), lengths=model.lengths
    )
    steps = rows.shape[-2]
    empty = (rows == -torch.inf).all(-1)
    if model.lengths is not None:
        empty &= torch.arange(steps, device=rows.device) < model.lengths.unsqueeze(-1)
    first = torch.where(empty.any(-1), empty.to(torch.int8).argmax(-1), -1).reshape(-1)
    check_support(f"DiscreteHMM.{method}", first, first, rows.shape[:-2])
