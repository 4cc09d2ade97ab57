"""Constraints as plain data: a name and arguments, so that a file needs no pickled code.

A constraint is written as `{"name": "interval", "args": {"lower_bound": 0.0, "upper_bound": 2.0}}`. The
name is one of `torch.distributions.constraints`, of `sumprod.distributions.constraints`, or one given to
`register_constraint`. Arguments are numbers, strings, tensors, constraints, and lists and tuples of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = ["canonical", "decode", "encode", "register_constraint"]

_REGISTERED: dict[str, Constraint | type[Constraint]] = {}

_UNRESOLVED: tuple[object, ...] = (
    constraints.Constraint,
    constraints.dependent,
    constraints.dependent_property,
)


def register_constraint(name: str, constraint: Constraint | type[Constraint]) -> None:
    """Lets parameters with a constraint of your own be saved and loaded without pickle.

    `constraint` is an instance without state, or a class that keeps each argument of its constructor in the
    attribute of the same name. The program that loads must register the same name before it loads.
    Raises ValueError when the name is taken, TypeError when `constraint` is no constraint.
    """
    is_class = inspect.isclass(constraint) and issubclass(constraint, Constraint)
    if not is_class and not isinstance(constraint, Constraint):
        raise TypeError(f"expected a constraint or a class of constraints, got {constraint!r}")
    taken = dict(_named()).get(name, constraint)
    if taken is not constraint:
        raise ValueError(f"the constraint name {name!r} already means {taken!r}; choose another name")
    _REGISTERED[name] = constraint


def _named() -> Iterator[tuple[str, Constraint | type[Constraint]]]:
    """All constraints that have a name; torch's come first."""
    # This layer lies below the distributions: it looks their constraints up once they are loaded.
    for module in (constraints, sys.modules.get("sumprod.distributions.constraints")):
        if module is None:
            continue
        for name, value in vars(module).items():
            if name.startswith("_") or any(value is item for item in _UNRESOLVED):
                continue
            if isinstance(value, Constraint) or (inspect.isclass(value) and issubclass(value, Constraint)):
                yield name, value
    yield from _REGISTERED.items()


def _same(one: Any, other: Any) -> bool:
    """Whether two constraints mean the same; tensors count only when they are one object."""
    if isinstance(one, Constraint):
        if type(one) is not type(other) or vars(one).keys() != vars(other).keys():
            return False
        return all(_same(value, vars(other)[key]) for key, value in vars(one).items())
    if isinstance(one, (bool, int, float, str)) and isinstance(other, (bool, int, float, str)):
        return one == other
    return one is other


def canonical(constraint: Constraint) -> Constraint:
    """The named object that means the same, e.g. `real` for an unpickled copy of it; else `constraint`."""
    for _, value in _named():
        if isinstance(value, Constraint) and _same(constraint, value):
            return value
    return constraint


def encode(constraint: Constraint) -> dict[str, Any]:
    """`constraint` as plain data for `decode`. Raises ValueError when it has no registered name."""
    by_class = None
    for name, value in _named():
        if isinstance(value, Constraint):
            if _same(constraint, value):
                return {"name": name, "args": {}}
        elif type(constraint) is value and by_class is None:
            by_class = name
    if by_class is None:
        raise ValueError(
            f"the constraint {constraint!r} of {type(constraint).__qualname__} has no registered name; call "
            "sumprod.params.register_constraint(name, constraint) once, or allow pickle"
        )
    return {"name": by_class, "args": _arguments(constraint)}


def _arguments(constraint: Constraint) -> dict[str, Any]:
    arguments = {}
    for name in list(inspect.signature(type(constraint).__init__).parameters)[1:]:
        if not hasattr(constraint, name):
            raise ValueError(
                f"the constraint {constraint!r} does not keep the argument {name!r} of its constructor in an "
                "attribute of that name; store it there, or allow pickle"
            )
        arguments[name] = _encode_value(getattr(constraint, name))
    return arguments


def _encode_value(value: Any) -> Any:
    if isinstance(value, Constraint):
        return encode(value)
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return [_encode_value(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"an argument of type {type(value).__name__} cannot be written without pickle")


def decode(spec: Mapping[str, Any]) -> Constraint:
    """The constraint that `encode` wrote. Raises ValueError for an unknown name."""
    for name, value in _named():
        if name == spec["name"]:
            if isinstance(value, Constraint):
                return value
            return value(**{key: _decode_value(item) for key, item in spec["args"].items()})
    raise ValueError(
        f"unknown constraint {spec['name']!r}; if it is your own, call "
        "sumprod.params.register_constraint(name, constraint) before loading"
    )


def _decode_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return decode(value)
    if isinstance(value, list):
        return [_decode_value(item) for item in value]
    return value
