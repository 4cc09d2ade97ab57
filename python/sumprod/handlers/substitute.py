"""Give params fixed values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from sumprod import settings
from sumprod.handlers.messenger import Messenger, make_handler


class SubstituteMessenger(Messenger):
    """Return given values from param statements; the parameter store is not touched.

    Args:
        data: constrained values by param name.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__()
        self.data = data
        self._unused: dict[str, None] = {}

    def __enter__(self) -> Any:
        self._unused = dict.fromkeys(self.data)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        super().__exit__(kind, error, traceback)
        if self._unused and error is None and settings.state.validate_poutine:
            warnings.warn(
                f"substitute: no param named {', '.join(map(repr, self._unused))} occurred; check the names",
                stacklevel=3,
            )
        return None

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.data:
            self._unused.pop(msg["name"], None)
            msg["value"] = self.data[msg["name"]]
            msg["done"] = True


_substitute = make_handler(SubstituteMessenger)


def substitute(
    fn: Callable[..., Any] | Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None
) -> Any:
    """`SubstituteMessenger` as `substitute(fn, data)`, `substitute(data)` or `substitute(data=data)`."""
    if isinstance(fn, Mapping) and data is None:
        fn, data = None, fn
    if data is None:
        raise ValueError("substitute needs data: a dict of values by param name")
    return _substitute(fn, data=data)
