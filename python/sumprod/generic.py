"""Programs that choose their backend late, as with `pyro.generic` of Pyro 0.3.

    from sumprod.generic import distributions as dist, infer, optim, pyro, pyro_backend

    with pyro_backend("sumprod"):
        pyro.sample("x", dist.Normal(0.0, 1.0))

`pyroapi` is the same idea as a package of its own; `sumprod.interop.pyroapi` registers sumprod with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["distributions", "infer", "optim", "pyro", "pyro_backend", "register_backend"]

_OURS = {
    "distributions": "sumprod.distributions",
    "infer": "sumprod.infer",
    "optim": "sumprod.optim",
    "pyro": "sumprod",
}
_BACKENDS: dict[str, dict[str, str]] = {"sumprod": _OURS, "pyro": _OURS}
_ACTIVE: ContextVar[dict[str, str]] = ContextVar("sumprod.generic", default=_OURS)


class GenericModule:
    """Stands for one module of the backend that is active when an attribute is read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(_ACTIVE.get()[self._name]), name)

    def __repr__(self) -> str:
        return f"<generic module {self._name!r}, now {_ACTIVE.get()[self._name]!r}>"


distributions = GenericModule("distributions")
infer = GenericModule("infer")
optim = GenericModule("optim")
pyro = GenericModule("pyro")


def register_backend(alias: str, modules: dict[str, str]) -> None:
    """Adds a backend: a dict from `distributions`, `infer`, `optim`, `pyro` to the names of its modules.

    Keys that are missing mean sumprod's own. Raises ValueError for other keys.
    """
    unknown = modules.keys() - _OURS.keys()
    if unknown:
        raise ValueError(f"unknown modules {sorted(unknown)}; a backend has {sorted(_OURS)}")
    _BACKENDS[alias] = {**_OURS, **modules}


@contextmanager
def pyro_backend(*aliases: str, **modules: str) -> Iterator[None]:
    """Activates a backend, by its name or by the names of its modules, inside a `with` block of this thread.

    Raises ValueError for an unknown backend or when not exactly one is given.

    >>> with pyro_backend("sumprod"):
    ...     pyro
    <generic module 'pyro', now 'sumprod'>
    """
    if len(aliases) + bool(modules) != 1:
        raise ValueError("give one backend: its name, or keywords such as infer='my.infer'")
    if aliases and aliases[0] not in _BACKENDS:
        raise ValueError(f"unknown backend {aliases[0]!r}; known: {', '.join(sorted(_BACKENDS))}")
    unknown = modules.keys() - _OURS.keys()
    if unknown:
        raise ValueError(f"unknown modules {sorted(unknown)}; a backend has {sorted(_OURS)}")
    token = _ACTIVE.set(_BACKENDS[aliases[0]] if aliases else {**_ACTIVE.get(), **modules})
    try:
        yield
    finally:
        _ACTIVE.reset(token)
