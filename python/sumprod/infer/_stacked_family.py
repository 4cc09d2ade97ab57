"""Many distributions of one family as one: their parameters stacked along a new leftmost batch dim.

A hundred small distributions cost a hundred small densities or divergences, each with half a dozen
operators and an autograd graph of its own. The stack costs one, by the family's own methods, so that
formula, validation and gradient stay those of the family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sumprod import distributions
from sumprod.distributions._family import PUBLIC, LeanFamily

__all__ = ["family_key", "stack_family"]

# The parameters of a family, all tensors of the batch shape. Of exactly these classes: a subclass may
# compute something else.
_PARAMETERS: dict[type, tuple[str, ...]] = {
    family: family._parameters
    for family in vars(distributions).values()
    if isinstance(family, type)
    and issubclass(family, LeanFamily)
    and family.__module__ == PUBLIC
    and hasattr(family, "_parameters")
}

# Families with `probs` or `logits`, whichever was given. The one that was is `_param` as well.
_DISCRETE: tuple[Any, ...] = tuple(getattr(distributions, name) for name in ("Bernoulli", "Categorical"))
_DISCRETE_STATE = ("_num_events", "_exact_zeros")

_MOST_ELEMENTS = 256  # above that, an operator's work exceeds its overhead and copies cost more


def _parameter_names(fn: Any) -> tuple[str, ...] | None:
    names = _PARAMETERS.get(type(fn))
    if names is None and type(fn) in _DISCRETE:
        return ("probs",) if fn.__dict__.get("probs") is fn._param else ("logits",)
    return names


def family_key(fn: Any) -> tuple[Any, ...] | None:
    """What distributions must share to be stacked, their device first; None for one that cannot be.

    That is one of another family, a large one, and one whose parameters are on several devices.
    """
    names = _parameter_names(fn)
    if names is None:
        return None
    members = fn.__dict__
    device = members[names[0]].device
    key = [device, type(fn), names, fn._batch_shape, fn._validate_args]
    for name in names:
        parameter = members[name]
        if parameter.numel() > _MOST_ELEMENTS or parameter.device != device:
            return None
        key.append(parameter.dtype)
    if "_num_events" in members:
        key += (members.get(name) for name in _DISCRETE_STATE)
    return tuple(key)


def stack_family(fns: Sequence[Any]) -> Any:
    """One distribution with batch shape (len(fns),) + theirs, of distributions with equal keys."""
    first = fns[0]
    cls: Any = type(first)
    stacked = cls.__new__(cls)
    names = _parameter_names(first)
    assert names is not None
    for name in names:
        stacked.__dict__[name] = torch.stack([fn.__dict__[name] for fn in fns])
    if cls in _DISCRETE:
        stacked._param = stacked.__dict__[names[0]]
        for name in _DISCRETE_STATE:
            if name in first.__dict__:
                stacked.__dict__[name] = first.__dict__[name]
    stacked._batch_shape = torch.Size((len(fns), *first._batch_shape))
    stacked._event_shape = first._event_shape
    stacked._validate_args = first._validate_args
    return stacked
