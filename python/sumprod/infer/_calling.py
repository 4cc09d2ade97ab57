"""Two ways to hand a model's arguments to an overridable method of a loss.

Pyro's older losses pass `(model, guide, *args, **kwargs)` to methods such as `_get_trace`, the newer
ones `(model, guide, args, kwargs)`, and programs contain subclasses of both kinds. Methods of our own
are decorated with `either_convention` and take both; an override of a user is called in the form that
its signature shows.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["call_method", "either_convention", "split_arguments"]

F = TypeVar("F", bound=Callable[..., Any])


def split_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The model's arguments, from a call of either form.

    Exactly two positionals, a tuple and a dict, without keywords are the newer form. (A model that takes
    just a tuple and a dict must therefore be called in the newer form.)
    """
    if len(args) == 2 and not kwargs and isinstance(args[0], tuple) and isinstance(args[1], dict):
        return args[0], args[1]
    return args, kwargs


def either_convention(method: F) -> F:
    """Let a method written as `(self, model, guide, args, kwargs)` be called in either form."""

    @functools.wraps(method)
    def accept(self: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, model, guide, *split_arguments(args, kwargs))

    accept._plain = method  # type: ignore[attr-defined]
    del accept.__wrapped__  # its signature is its own
    return accept  # type: ignore[return-value]


_FORMS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # function -> takes args and kwargs packed


def _takes_packed(function: Any) -> bool:
    """Whether an override is written in the newer form."""
    known = _FORMS.get(function)
    if known is None:
        parameters = list(inspect.signature(function).parameters.values())
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        last = [name.lstrip("_") for name in positional[-2:]]
        known = _FORMS[function] = not variadic and last == ["args", "kwargs"]
    return known


def call_method(
    owner: Any, name: str, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """`owner.name(model, guide, ...)`, in the form that the method is written in."""
    method = getattr(owner, name)
    function = getattr(method, "__func__", method)
    plain = getattr(function, "_plain", None)
    if plain is not None and hasattr(method, "__self__"):
        return plain(owner, model, guide, args, kwargs)
    if _takes_packed(function):
        return method(model, guide, args, kwargs)
    return method(model, guide, *args, **kwargs)
