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
            self.hide_fn = _Negation(expose_fn)
        else:
            self.hide_fn = _Lists(hide_all, expose_all, hide, expose, hide_types, expose_types)

    def _hides(self, msg: Any) -> bool:
        return bool(self.hide_fn(msg))

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = bool(self.hide_fn(msg))


class _Negation:
    """The opposite of a predicate. A class, like the next one, so that handlers can be pickled."""

    def __init__(self, predicate: Predicate) -> None:
        self.predicate = predicate

    def __call__(self, msg: Any) -> bool:
        return not self.predicate(msg)


class _Lists:
    """Whether lists of names and types hide a site."""

    def __init__(
        self,
        hide_all: bool,
        expose_all: bool,
        hide: Sequence[str] | None,
        expose: Sequence[str] | None,
        hide_types: Sequence[str] | None,
        expose_types: Sequence[str] | None,
    ) -> None:
        # The lists have the last word: hiding something by name means that the rest is shown.
        self.by_default = hide_all and not expose_all
        if hide is not None or hide_types is not None:
            self.by_default = False
        if expose is not None or expose_types is not None:
            self.by_default = True
        self.hidden, self.exposed = frozenset(hide or ()), frozenset(expose or ())
        self.hidden_types, self.exposed_types = frozenset(hide_types or ()), frozenset(expose_types or ())
        both = sorted(self.hidden & self.exposed) + sorted(self.hidden_types & self.exposed_types)
        if both:
            raise AssertionError(f"cannot hide and expose a site: {both} are in both lists")

    def __call__(self, msg: Any) -> bool:
        name, type = msg["name"], msg["type"]
        if type == "sample" and msg["is_observed"]:
            type = "observe"
        if name in self.exposed or type in self.exposed_types:
            return False
        return self.by_default or name in self.hidden or type in self.hidden_types


block = make_handler(BlockMessenger)
