"""Observe sites that a program samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from sumprod import settings
from sumprod.handlers.messenger import Messenger, make_handler
from sumprod.handlers.trace_struct import Trace


class ConditionMessenger(Messenger):
    """Fix sample sites to data, as if they had been written with `obs=`.

    Overrides an observation that is there; the value None makes a site latent. Under validation, a
    name that no site of the run has gives a warning.

    Args:
        data: values by name, or a trace.
    """

    def __init__(self, data: Mapping[str, Any] | Trace) -> None:
        super().__init__()
        self.data = data
        self._unused: dict[str, None] = {}

    def __enter__(self) -> Any:
        self._unused = {} if isinstance(self.data, Trace) else dict.fromkeys(self.data)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        super().__exit__(kind, error, traceback)
        if self._unused and error is None and settings.state.validate_poutine:
            warnings.warn(
                f"condition: no sample site named {', '.join(map(repr, self._unused))} occurred;"
                " check the names in data",
                stacklevel=3,
            )
        return None

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.data:
            return
        self._unused.pop(name, None)
        value = self.data.nodes[name]["value"] if isinstance(self.data, Trace) else self.data[name]
        msg["value"] = value
        msg["is_observed"] = value is not None


_condition = make_handler(ConditionMessenger)


def condition(
    fn: Callable[..., Any] | Mapping[str, Any] | Trace | None = None,
    data: Mapping[str, Any] | Trace | None = None,
) -> Any:
    """`ConditionMessenger` as `condition(fn, data)`, `condition(data)` or `condition(data=data)`."""
    if isinstance(fn, Mapping | Trace) and data is None:
        fn, data = None, fn
    if data is None:
        raise ValueError("condition needs data: a dict of values by site name, or a trace")
    return _condition(fn, data=data)
