"""Set inference options of sites from outside the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sumprod.handlers.messenger import Messenger, make_handler


class InferConfigMessenger(Messenger):
    """Merge the dict that `config_fn(site)` returns into `infer` of each sample and param site."""

    def __init__(self, config_fn: Callable[[Any], Mapping[str, Any]]) -> None:
        super().__init__()
        if not callable(config_fn):
            raise TypeError(f"Expected config_fn to be a function of a site, got {config_fn!r}")
        self.config_fn = config_fn

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"].update(self.config_fn(msg))

    def _pyro_param(self, msg: Any) -> None:
        msg["infer"].update(self.config_fn(msg))


infer_config = make_handler(InferConfigMessenger)
