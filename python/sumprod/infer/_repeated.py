"""Tensors that a program computes again and again in the same way.

A chain looks its parameters up at every step: `probs[x]`, where `x` lists all states. The results are
equal, but autograd has a node for each. To use one of them in place of all gives the same values and
gradients for a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_alike"]

_LARGE = 1 << 16  # entries; comparing larger tensors takes longer than it saves


def all_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the first tensor can stand for all: they are equal as functions of what they depend on.

    That is recognised of one tensor repeated, of equal tensors without gradients, and of look-ups with equal
    indices in one tensor, or the same part of each, if they are not large. False means "perhaps not".
    """
    first = tensors[0]
    others = [other for other in tensors[1:] if other is not first]
    if not others:
        return True
    if first.numel() > _LARGE or any(_is_watched(tensor) for tensor in (first, *others)):
        return False
    wanted = first.requires_grad, first.dtype, first.shape
    if any((other.requires_grad, other.dtype, other.shape) != wanted for other in others):
        return False
    return _all_equal(first, others) and not (
        # Values say nothing about gradients; nodes nothing about a table written to in between.
        first.requires_grad and not all(_same_node(first.grad_fn, other.grad_fn) for other in others)
    )


def _all_equal(first: Tensor, others: list[Tensor]) -> bool:
    if not torch.equal(first, others[0]):
        return False  # the usual answer of tensors that differ
    with torch.no_grad():
        return bool((torch.stack(others) == first).all())


def _is_watched(tensor: Tensor) -> bool:
    """Whether somebody wants the gradient of this very tensor."""
    return tensor._backward_hooks is not None or tensor.retains_grad


def _same_node(one: Any, other: Any) -> bool:
    """Whether two nodes of autograd do the same to the same input."""
    if one is other:
        return one is not None
    if one is None or other is None or one.name() != other.name():
        return False
    if not one.next_functions:
        return False  # two leaves
    (source, number), (other_source, other_number) = one.next_functions[0], other.next_functions[0]
    if number != other_number:
        return False
    if one.name() == "IndexBackward0":
        pairs = zip(one._saved_indices, other._saved_indices, strict=False)
        same = len(one._saved_indices) == len(other._saved_indices) and all(
            a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
        )
    elif one.name() == "PermuteBackward0":
        same = one._saved_dims == other._saved_dims
    elif one.name() == "AsStridedBackward0":
        same = (one._saved_size, one._saved_stride, one._saved_storage_offset) == (
            other._saved_size,
            other._saved_stride,
            other._saved_storage_offset,
        )
    elif one.name() == "AliasBackward0":
        same = True
    else:
        return False
    return same and _same_node(source, other_source)
