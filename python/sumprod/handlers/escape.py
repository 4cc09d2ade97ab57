"""Leave a running program at a site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sumprod.handlers.messenger import Messenger, make_handler
from sumprod.runtime import NonlocalExit


class EscapeMessenger(Messenger):
    """Raise `NonlocalExit` at the first finished sample site for which `escape_fn(site)` holds."""

    def __init__(self, escape_fn: Callable[[Any], bool]) -> None:
        super().__init__()
        if not callable(escape_fn):
            raise TypeError(f"Expected escape_fn to be a function of a site, got {escape_fn!r}")
        self.escape_fn = escape_fn

    def _pyro_sample(self, msg: Any) -> None:
        if self.escape_fn(msg):
            msg["done"] = True
            msg["stop"] = True
            msg["continuation"] = _leave


def _leave(msg: Any) -> None:
    raise NonlocalExit(msg)


escape = make_handler(EscapeMessenger)
