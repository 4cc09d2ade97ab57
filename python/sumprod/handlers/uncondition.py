"""Sample the sites that a program observes."""

from __future__ import annotations

from typing import Any

from sumprod.handlers.messenger import Messenger, make_handler


class UnconditionMessenger(Messenger):
    """Turn observed sample sites into latent ones, whose values are drawn.

    The site's `infer` gets `was_observed=True` and the data under `obs`.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["is_observed"] = False
            msg["infer"]["was_observed"] = True
            msg["infer"]["obs"] = msg["value"]
            msg["value"] = None
            msg["done"] = False


uncondition = make_handler(UnconditionMessenger)
