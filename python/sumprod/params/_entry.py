"""One parameter: its leaf, its constraint, and the map from the one to values that fulfil the other."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SoftmaxTransform,
    Transform,
)

Init = torch.Tensor | float | Callable[[], torch.Tensor | float]
Transformation = Callable[[torch.Tensor], torch.Tensor]


class Identity:
    """Which parameter a leaf belongs to. Assigning `store[name] = value` replaces the leaf and keeps this."""

    __slots__ = ("__weakref__",)


class LeafReference(weakref.ref):  # type: ignore[type-arg]
    """What a parameter's value carries as `.unconstrained`: call it for the leaf; None once that is gone.

    Tensors are pickled with their attributes, and weak references cannot be: this one becomes dead instead.
    """

    __slots__ = ("identity",)

    identity: Identity

    def __reduce__(self) -> tuple[Any, ...]:
        return _dead_reference, ()


def _dead_reference() -> LeafReference:
    reference = LeafReference(torch.empty(0))
    reference.identity = Identity()
    return reference


# Without this, torch.load would refuse a file with a parameter's value under weights_only=True.
torch.serialization.add_safe_globals([_dead_reference])


def _reference_of(leaf: torch.Tensor) -> LeafReference | None:
    reference = getattr(leaf, "unconstrained", None)
    return reference if isinstance(reference, LeafReference) and reference() is leaf else None


def identity_of(leaf: torch.Tensor) -> Identity | None:
    """The parameter that `leaf` belongs to, or None when it never was in a store."""
    reference = _reference_of(leaf)
    return None if reference is None else reference.identity


class Entry:
    """A parameter in the store. `transform` is None where value and leaf are the same tensor.

    `successor_of` is the entry that this one replaces under the same name, if there is one.
    """

    __slots__ = ("constraint", "leaf", "reference", "transform")

    reference: LeafReference

    def __init__(self, leaf: torch.Tensor, constraint: Constraint, successor_of: Entry | None = None) -> None:
        self.leaf = leaf
        self.constraint = constraint
        self.transform = _transformation(constraint)
        reference = _reference_of(leaf)
        if reference is None:
            reference = LeafReference(leaf)
            reference.identity = Identity() if successor_of is None else successor_of.reference.identity
            leaf.unconstrained = reference  # type: ignore[attr-defined]
        self.reference = reference

    def value(self) -> torch.Tensor:
        """The constrained value, with `.unconstrained()`."""
        if self.transform is None:
            return self.leaf
        value = self.transform(self.leaf)
        value.unconstrained = self.reference  # type: ignore[attr-defined]
        return value


def is_identity(transform: Transform) -> bool:
    if isinstance(transform, IndependentTransform):
        return is_identity(transform.base_transform)
    return isinstance(transform, ComposeTransform) and all(is_identity(part) for part in transform.parts)


def is_exp(transform: Transform) -> bool:
    """Whether it is exp, alone or followed by x -> 0 + 1 * x, which is how torch writes `positive`."""
    if not isinstance(transform, ComposeTransform):
        return type(transform) is ExpTransform
    first, *rest = transform.parts
    return type(first) is ExpTransform and all(
        type(part) is AffineTransform
        and not isinstance(part.loc, torch.Tensor)
        and not isinstance(part.scale, torch.Tensor)
        and (part.loc, part.scale) == (0, 1)
        for part in rest
    )


def _softmax(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.softmax(-1)


def _keeps_values(transform: Transform) -> bool:
    """Whether the transform remembers its last result: that would hold on to a graph that is used up."""
    if transform._cache_size != 0:
        return True
    parts = list(getattr(transform, "parts", ())) + list(getattr(transform, "transforms", ()))
    base = getattr(transform, "base_transform", None)
    return any(_keeps_values(part) for part in ([*parts, base] if base is not None else parts))


def _transformation(constraint: Constraint) -> Transformation | None:
    if constraint is constraints.real:
        return None
    transform = transform_to(constraint)
    if is_identity(transform):
        return None
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform  # the same values; it only declares dims as event dims
    if is_exp(transform):
        return torch.exp  # the same bits by one operation instead of three
    if type(transform) is SoftmaxTransform:
        return _softmax  # one operation instead of five
    if _keeps_values(transform):
        return lambda leaf: transform_to(constraint)(leaf)  # type: ignore[no-any-return, unused-ignore]
    return transform  # type: ignore[no-any-return, unused-ignore]


def make_leaf(name: str, init: Init, constraint: Constraint) -> torch.Tensor:
    """The unconstrained leaf for the constrained initial value `init`.

    An `nn.Parameter` is used itself where no transform stands between; everything else is copied, so that
    the caller's tensor and its requires_grad stay as they are.
    """
    value = init() if callable(init) and not isinstance(init, torch.Tensor) else init
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(float(value))
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"parameter {name!r}: expected as initial value a tensor, a number or a function that "
            f"returns one, got {type(value).__name__}"
        )
    if not (value.is_floating_point() or value.is_complex()):
        raise RuntimeError(
            f"parameter {name!r}: only Tensors of floating point dtype can require gradients, got "
            f"{value.dtype}; convert the initial value, e.g. with .float()"
        )
    transform = None if constraint is constraints.real else transform_to(constraint)
    identity = transform is None or is_identity(transform)
    if identity and isinstance(value, torch.nn.Parameter) and value.requires_grad:
        return value
    # A leaf made under inference_mode could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        value = value.detach().clone(memory_format=torch.contiguous_format)
        if transform is not None and not identity:
            value = _unconstrain(name, value, constraint, transform)
    return value.requires_grad_()


def _unconstrain(
    name: str, value: torch.Tensor, constraint: Constraint, transform: Transform
) -> torch.Tensor:
    leaf: torch.Tensor = transform.inv(value)
    bad = ~torch.isfinite(leaf)
    if bad.any():
        # Where the shapes differ (simplex), no single element can be blamed.
        shown = value[bad][0].item() if bad.shape == value.shape else value.flatten()[:8].tolist()
        raise ValueError(
            f"parameter {name!r}: the initial value {shown} of shape {tuple(value.shape)} is on the boundary "
            f"of its constraint {constraint} or outside, so its unconstrained value is not finite; start "
            "strictly inside"
        )
    # inv may return its input or a view of it (e.g. of a triangular part).
    return leaf.clone(memory_format=torch.contiguous_format)
