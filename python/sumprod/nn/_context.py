"""The state of a running module: what all modules of one tree share while the root is being called."""

from __future__ import annotations

import threading
from typing import Any

from sumprod import settings
from sumprod.handlers.messenger import Messenger


class Call:
    """One thread's running call of a module tree. Values drawn from priors are drawn once per call."""

    __slots__ = ("depth", "drawn", "local")

    def __init__(self) -> None:
        self.depth = 0  # a module may call modules of its own tree
        self.drawn: dict[str, Any] = {}  # values of PyroSample attributes, by full name
        self.local: LocalParamsMessenger | None = None


class Context:
    """Enter it to run a module of the tree; attributes of its modules are then sites of the program.

    Attributes:
        used: a module of the tree has been run, so its parameters may be in the store.
    """

    __slots__ = ("_calls", "used")

    def __init__(self, used: bool = False) -> None:
        self.used = used
        self._calls: dict[int, Call] = {}  # by thread: two threads can run one module at once

    def __reduce__(self) -> tuple[Any, ...]:
        return Context, (self.used,)  # a copied module is not running

    def call(self) -> Call | None:
        """The running call of this thread."""
        return self._calls.get(threading.get_ident())

    @property
    def active(self) -> bool:
        """Whether a module of the tree is running in this thread."""
        return threading.get_ident() in self._calls

    def __enter__(self) -> Call:
        self.used = True
        thread = threading.get_ident()
        call = self._calls.get(thread)
        if call is None:
            call = Call()
            if settings.state.module_local_params:
                call.local = LocalParamsMessenger()
                call.local.__enter__()
            self._calls[thread] = call
        call.depth += 1
        return call

    def __exit__(self, *error: Any) -> None:
        thread = threading.get_ident()
        call = self._calls[thread]
        call.depth -= 1
        if call.depth == 0:
            del self._calls[thread]
            if call.local is not None:
                call.local.__exit__(*error)


class LocalParamsMessenger(Messenger):
    """Refuses params that would be kept in the store while modules keep their own."""

    def _pyro_param(self, msg: Any) -> None:
        if not (msg["done"] or msg["kwargs"].get("module_local")):
            raise NotImplementedError(
                "Support for global pyro.param statements in PyroModules with local param mode enabled is not"
                f" yet implemented: '{msg['name']}' would not be among the module's parameters(). Make it an"
                " attribute of the module, PyroParam(...), or set module_local_params=False"
            )
