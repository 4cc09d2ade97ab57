"""Many distributions of one family as one: their parameters stacked along a new leftmost batch dim.

A hundred small distributions cost a hundred small densities or divergences, each with half a dozen
operators and an autograd graph of its own. The stack costs one, by the family's own methods, so that
formula, validation and gradient stay those of the family.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod import distributions
from sumprod.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Multinomial,
    OneHotCategorical,
)
from sumprod.distributions._family import PUBLIC, LeanFamily
from sumprod.distributions.util import broadcast_shape

__all__ = [
    "before_expansion",
    "family_key",
    "own_dims",
    "parameter_names",
    "parameters_of",
    "stack_family",
    "with_parameters",
]

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

# Families with a `Categorical` of torch inside, which has the parameters.
_OF_CATEGORICAL = (Multinomial, OneHotCategorical)

_CATEGORICAL_STATE = ("_num_events", "_exact_zeros")

_MOST_ELEMENTS = 256  # above that, an operator's work exceeds its overhead and copies cost more


def parameter_names(fn: Any) -> tuple[str, ...] | None:
    """The attributes that are the parameters of a distribution; None when its family cannot be stacked."""
    if type(fn) is Categorical:
        return ("_weights",) if "_weights" in fn.__dict__ else ("logits",)
    if type(fn) is Bernoulli:
        return ("probs",) if fn.__dict__.get("probs") is fn._param else ("logits",)
    return _PARAMETERS.get(type(fn))


def own_dims(family: type) -> int:
    """How many dims a parameter has to the right of the batch dims."""
    return int(family is Categorical or family in _OF_CATEGORICAL)


def parameters_of(fn: Any) -> tuple[tuple[str, ...], list[Tensor]] | None:
    """Names and parameters for `with_parameters`, of more families than `stack_family` takes."""
    members, names = fn.__dict__, parameter_names(fn)
    if names is not None:
        return names, [members[name] for name in names]
    if type(fn) in _OF_CATEGORICAL:
        members = fn._categorical.__dict__
        names = ("probs",) if members.get("probs") is members["_param"] else ("logits",)
    elif type(fn) is Geometric:
        names = ("probs",) if "probs" in members else ("logits",)
    elif type(fn) is Binomial:
        names = ("total_count", "probs" if members.get("probs") is members["_param"] else "logits")
    else:
        return None
    return names, [members[name] for name in names]


def family_key(fn: Any) -> tuple[Any, ...] | None:
    """What distributions must share to be stacked, their device first; None for one that cannot be.

    That is one of another family, a large one, and one whose parameters are on several devices.
    """
    names = parameter_names(fn)
    if names is None:
        return None
    members = fn.__dict__
    device = members[names[0]].device
    key = [device, type(fn), names, fn._batch_shape, fn._validate_args]
    for name in names:
        parameter = _expanded(fn, name)
        if parameter.numel() > _MOST_ELEMENTS or parameter.device != device:
            return None
        key.append(parameter.dtype)
    if type(fn) is Categorical:
        key += (members.get(name) for name in _CATEGORICAL_STATE)
    return tuple(key)


def stack_family(fns: Sequence[Any]) -> Any:
    """One distribution with batch shape (len(fns),) + theirs, of distributions with equal keys."""
    names = parameter_names(fns[0])
    assert names is not None
    return with_parameters(
        fns[0], names, [torch.stack([_expanded(fn, name) for fn in fns]) for name in names]
    )


def _expanded(fn: Any, name: str) -> Tensor:
    """A parameter under the whole batch shape."""
    parameter: Tensor = fn.__dict__[name]
    return fn._full(parameter) if name == "_weights" else parameter


def with_parameters(like: Any, names: Sequence[str], parameters: Sequence[Tensor]) -> Any:
    """A distribution of the family of `like`, with other parameters, which are not checked."""
    cls: Any = type(like)
    new = cls.__new__(cls)
    shape = parameters[0].shape
    if any(parameter.shape != shape for parameter in parameters):
        shape = torch.Size(broadcast_shape(*(parameter.shape for parameter in parameters)))
    if own_dims(cls):
        shape = shape[:-1]
    if cls in _OF_CATEGORICAL:
        new._categorical = _categorical(names[0], parameters[0])
        if cls is Multinomial:
            new.total_count = like.total_count
    else:
        new.__dict__.update(zip(names, parameters, strict=True))
    if cls is Bernoulli or cls is Binomial:
        new._param = parameters[-1]
    elif cls is Categorical:
        for name in _CATEGORICAL_STATE:
            if name in like.__dict__:
                new.__dict__[name] = like.__dict__[name]
    new._batch_shape = shape
    new._event_shape = like._event_shape
    new._validate_args = like._validate_args
    return new


def _categorical(name: str, parameter: Tensor) -> Any:
    """What torch's constructor makes of a parameter, once that is normalised."""
    new: Any = object.__new__(torch.distributions.Categorical)
    new.__dict__[name] = new._param = parameter
    new._num_events = parameter.shape[-1]
    new._batch_shape, new._event_shape = parameter.shape[:-1], torch.Size()
    new._validate_args = False  # it is asked for values that have been checked
    return new


def before_expansion(tensor: Tensor) -> Tensor:
    """The tensor of which this one is an expanded view, or equal to it; itself when it is something else.

    So an index or a slice that was expanded is taken from the whole again, without the steps in between.
    """
    base = tensor._base
    if base is None or base.requires_grad != tensor.requires_grad:
        return tensor
    if tensor.requires_grad and tensor.grad_fn is None and torch.is_grad_enabled():
        return tensor  # a view of a leaf made without gradients must not give the leaf a gradient
    shape, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    if base.storage_offset() == offset and _is_expansion(base.shape, base.stride(), shape, strides):
        return base
    if 0 not in strides or base.dtype != tensor.dtype or not _is_part(tensor.grad_fn, base):
        return tensor
    sizes = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]
    return base.as_strided(sizes, strides, offset)


_PARTS = frozenset(
    f"{name}Backward{number}"
    for name in ("Expand", "Permute", "Select", "Slice", "Squeeze", "T", "Transpose", "Unsqueeze", "View")
    for number in range(3)
)


def _is_part(node: Any, base: Tensor) -> bool:
    """Whether a node of autograd (None: no gradient) did nothing but choose entries of `base`."""
    if node is None:
        return True
    end = base.grad_fn
    while node is not end and node is not None and node.name() in _PARTS:
        node = node.next_functions[0][0]
    if node is None:
        return False
    return node is end if end is not None else getattr(node, "variable", None) is base


@functools.lru_cache(maxsize=1024)
def _is_expansion(
    old: tuple[int, ...], old_strides: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...]
) -> bool:
    """Whether `expand` makes the second view of a storage from the first."""
    missing = len(shape) - len(old)
    if missing < 0:
        return False
    for i, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        own = i - missing
        same = own >= 0 and old[own] == size and (old_strides[own] == stride or size == 1)
        repeated = stride == 0 and (own < 0 or old[own] == 1)
        if not (same or repeated):
            return False
    return True
