"""Hide sites from the handlers further out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sumprod.handlers.messenger import Messenger, make_handler

Predicate = Callable[[Any], bool]


class BlockMessenger(Messenger):
    """Hide some sites, by default all, from handlers outside; handlers inside still act on them.

    A hidden param is not seen by an optimiser that records params outside.

    Args:
        hide_fn: hide the sites for which it holds.
        expose_fn: hide the others.
        hide_all: hide what the lists below do not expose (default).
        expose_all: expose what they do not hide.
        hide, expose: names. `hide` or `hide_types` alone exposes everything else.
        hide_types, expose_types: site types; "observe" stands for observed sample sites.

    Raises:
        ValueError: both functions were given.
        AssertionError: a name or type is to be both hidden and exposed.
    """

    def __init__(
        self,
        hide_fn: Predicate | None = None,
        expose_fn: Predicate | None = None,
        hide_all: bool = True,
        expose_all: bool = False,
        hide: Sequence[str] | None = None,
        expose: Sequence[str] | None = None,
        hide_types: Sequence[str] | None = None,
        expose_types: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if hide_fn is not None and expose_fn is not None:
            raise ValueError("Only specify one of hide_fn or expose_fn")
        if hide_fn is not None:
            self.hide_fn: Predicate = hide_fn
        elif expose_fn is not None:
            self.hide_fn = lambda msg: not expose_fn(msg)
        else:
            self.hide_fn = _by_lists(hide_all, expose_all, hide, expose, hide_types, expose_types)

    def _hides(self, msg: Any) -> bool:
        return bool(self.hide_fn(msg))

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = bool(self.hide_fn(msg))


def _by_lists(
    hide_all: bool,
    expose_all: bool,
    hide: Sequence[str] | None,
    expose: Sequence[str] | None,
    hide_types: Sequence[str] | None,
    expose_types: Sequence[str] | None,
) -> Predicate:
    # The lists have the last word: hiding something by name means that the rest is shown.
    hidden_by_default = hide_all and not expose_all
    if hide is not None or hide_types is not None:
        hidden_by_default = False
    if expose is not None or expose_types is not None:
        hidden_by_default = True
    hidden, exposed = frozenset(hide or ()), frozenset(expose or ())
    hidden_types, exposed_types = frozenset(hide_types or ()), frozenset(expose_types or ())
    both = sorted(hidden & exposed) + sorted(hidden_types & exposed_types)
    if both:
        raise AssertionError(f"cannot hide and expose a site: {both} are in both lists")

    def hides(msg: Any) -> bool:
        name, type = msg["name"], msg["type"]
        if type == "sample" and msg["is_observed"]:
            type = "observe"
        if name in exposed or type in exposed_types:
            return False
        return hidden_by_default or name in hidden or type in hidden_types

    return hides


block = make_handler(BlockMessenger)
