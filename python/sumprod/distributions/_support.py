"""A mark on the tensor that lists a categorical variable's whole support.

Enumeration asks for the log-probability of every value, and then needs no lookup: the logits, with their
last dim moved to the front, are the answer. The mark says that a tensor is 0, ..., K-1 along its leftmost
dim and has size 1 elsewhere. It belongs to one tensor object in one state: results of operators, copies
and unpickled tensors do not carry it, and writing into the tensor voids it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["is_whole_support", "mark_as_support"]


def mark_as_support(values: Tensor) -> Tensor:
    """Mark `values`, which must be arange(K) reshaped to (K, 1, ..., 1), and return it.

    For code that reshapes a marked tensor to (K, 1, ..., 1) with another number of dims and wants to keep
    the mark.
    """
    values._whole_support = (id(values), values._version)  # type: ignore[attr-defined]
    return values


def is_whole_support(values: Any, count: int) -> bool:
    """Whether `values` is marked, unchanged, and lists `count` values."""
    mark = getattr(values, "_whole_support", None)
    return mark is not None and mark == (id(values), values._version) and values.shape[0] == count
