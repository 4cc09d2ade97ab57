"""Put priors on params."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sumprod import settings
from sumprod.distributions import Distribution
from sumprod.handlers.messenger import Messenger, make_handler
from sumprod.params.param_store import user_param_name


class LiftMessenger(Messenger):
    """Turn param statements into sample statements.

    The second statement of one param in a run gets the first one's draw.

    Args:
        prior: a distribution for all params; or a callable that draws a value; or a dict of those by
            param name (for params of a module: the part after `$$$`). Params that a dict does not
            name stay params; a key that names none gives a warning under validation.
    """

    def __init__(self, prior: Any) -> None:
        super().__init__()
        if not (callable(prior) or isinstance(prior, Mapping)):
            raise TypeError(
                "Expected prior to be a distribution, a callable or a dict of them by name, got"
                f" {type(prior).__name__}"
            )
        self.prior = prior
        self._draws: dict[str, Any] = {}
        self._unused: dict[str, None] = {}

    def __enter__(self) -> Any:
        self._draws = {}
        self._unused = dict.fromkeys(self.prior) if isinstance(self.prior, Mapping) else {}
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        super().__exit__(kind, error, traceback)
        self._draws = {}
        if self._unused and error is None and settings.state.validate_poutine:
            warnings.warn(
                f"pyro.module prior did not find params {', '.join(map(repr, self._unused))} to lift:"
                " check the names in prior",
                stacklevel=3,
            )
        return None

    def _prior_of(self, name: str) -> Any:
        if not isinstance(self.prior, Mapping):
            return self.prior
        for key in (user_param_name(name), name):
            if key in self.prior:
                self._unused.pop(key, None)
                return self.prior[key]
        return None

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        fn = self._prior_of(name)
        if fn is None:
            return
        if not callable(fn):
            raise TypeError(f"Expected a distribution or a callable as prior of '{name}', got {fn!r}")
        draw = self._draws.get(name)
        if draw is not None:
            msg["value"], msg["done"] = draw, True
            msg["type"] = "lifted"  # for the other handlers there is one sample site, not two
            return
        self._draws[name] = None
        msg["type"] = "sample"
        msg["fn"] = fn
        msg["args"] = () if isinstance(fn, Distribution) else msg["args"]
        msg["kwargs"] = {}
        msg["infer"] = {}
        msg["is_observed"] = False

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._draws:
            self._draws[msg["name"]] = msg["value"]


lift = make_handler(LiftMessenger)
