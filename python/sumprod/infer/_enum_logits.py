"""Logits of the sites of a trace, computed together.

A program with a long chain makes hundreds of small distributions from probabilities. Their densities need
logits, and each would compute its own, on parameters expanded to all plates around. Here parameters of
one shape are stacked as they were before the expansion, and converted in one call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits

from sumprod.distributions import Bernoulli, Categorical, Independent, MaskedDistribution

__all__ = ["fill_logits"]

_BINARY = {Bernoulli: True, Categorical: False}
_LARGE = 1 << 16  # entries; copying larger parameters together takes longer than it saves


def fill_logits(sites: Iterable[Any]) -> None:
    """Set the attribute `logits`, which is computed when first used, of the sites' distributions."""
    groups: dict[Any, list[tuple[Any, Tensor]]] = {}
    for site in sites:
        fn = site["fn"]
        while isinstance(fn, Independent | MaskedDistribution):
            fn = fn.base_dist
        binary = _BINARY.get(type(fn))
        if binary is None or "logits" in fn.__dict__ or getattr(fn, "_exact_zeros", False):
            continue
        probs = _before_expansion(fn.probs)
        if probs.numel() <= _LARGE:
            groups.setdefault((binary, probs.shape, probs.dtype, probs.device), []).append((fn, probs))
    for (binary, *_), members in groups.items():
        if len(members) == 1:
            rows: Iterable[Tensor] = (probs_to_logits(members[0][1], is_binary=binary),)
        else:
            rows = probs_to_logits(torch.stack([probs for _, probs in members]), is_binary=binary).unbind()
        for (fn, _), row in zip(members, rows, strict=True):
            fn.logits = row if row.shape == fn.probs.shape else row.expand(fn.probs.shape)


def _before_expansion(tensor: Tensor) -> Tensor:
    """The tensor of which this one is an expanded view; itself when it is something else."""
    base = tensor._base
    if base is None or base.storage_offset() != tensor.storage_offset() or base.dim() > tensor.dim():
        return tensor
    missing = tensor.dim() - base.dim()
    strides, shape = tensor.stride(), tensor.shape
    for i in range(tensor.dim()):
        own = i - missing
        same = own >= 0 and base.shape[own] == shape[i] and (base.stride(own) == strides[i] or shape[i] == 1)
        repeated = strides[i] == 0 and (own < 0 or base.shape[own] == 1)
        if not (same or repeated):
            return tensor
    # A view of a leaf made without gradients must not give the leaf a gradient.
    return base if base.requires_grad == tensor.requires_grad else tensor
