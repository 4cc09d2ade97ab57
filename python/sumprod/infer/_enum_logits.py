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
from sumprod.infer._stacked_family import before_expansion

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
        probs = before_expansion(fn.probs)
        if probs.numel() <= _LARGE:
            groups.setdefault((binary, probs.shape, probs.dtype, probs.device), []).append((fn, probs))
    for (binary, *_), members in groups.items():
        if len(members) == 1:
            rows: Iterable[Tensor] = (probs_to_logits(members[0][1], is_binary=binary),)
        else:
            rows = probs_to_logits(torch.stack([probs for _, probs in members]), is_binary=binary).unbind()
        for (fn, _), row in zip(members, rows, strict=True):
            fn.logits = row if row.shape == fn.probs.shape else row.expand(fn.probs.shape)
