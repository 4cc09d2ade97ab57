"""How deep a program's plates are nested: a trial run, and a memory of its results per program."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sumprod._random import preserve_rng_state
from sumprod.handlers import block, replay, trace
from sumprod.handlers.util import prune_subsample_sites
from sumprod.infer._checks import check_site_shape
from sumprod.settings import state

__all__ = ["NestingGuesses", "deepest_plate", "try_nesting"]

logger = logging.getLogger("sumprod.infer")


def deepest_plate(traces: Iterable[Any], ignore: str | None = None) -> int:
    """The largest -dim of any vectorised plate around a sample site; 0 without plates.

    Plates named `ignore` do not count.
    """
    return max(
        (
            -frame.dim
            for one in traces
            for site in one.nodes.values()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.dim is not None and frame.name != ignore
        ),
        default=0,
    )


def try_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Run guide and model once, hidden from outer handlers, and return how deep plates are nested.

    The random generators are afterwards as they were. Parameters that do not exist yet are created.
    """
    with preserve_rng_state(), block():
        guide_trace = trace(guide).get_trace(*args, **kwargs)
        model_trace = trace(replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    traces = [prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)]
    if state.validate_infer:
        for one in traces:
            one.compute_log_prob()
            for site in one.nodes.values():
                if site["type"] == "sample":
                    check_site_shape(site, math.inf)
    depth = deepest_plate(traces)
    logger.info("Guessed max_plate_nesting = %d", depth)
    return depth


class NestingGuesses:
    """A number per pair (model, guide). Entries disappear with the programs they belong to.

    Programs are told apart by identity; bound methods by their object and function. A program to which
    no weak reference can be made is not remembered.
    """

    def __init__(self) -> None:
        self._depths: dict[tuple[int, ...], int] = {}
        # What keeps the ids in `_depths` meaningful: an id may be used again after its object dies.
        self._watches: dict[tuple[int, ...], list[Any]] = {}

    @staticmethod
    def _anchors(model: Any, guide: Any) -> list[Any]:
        anchors: list[Any] = []
        for program in (model, guide):
            owner = getattr(program, "__self__", None)
            function = getattr(program, "__func__", None)
            anchors += [program, program] if owner is None or function is None else [owner, function]
        return anchors

    def get(self, model: Any, guide: Any) -> int | None:
        """The number for a pair, or None."""
        return self._depths.get(tuple(map(id, self._anchors(model, guide))))

    def set(self, model: Any, guide: Any, depth: int) -> None:
        """Remember the number for a pair."""
        anchors = self._anchors(model, guide)
        key = tuple(map(id, anchors))
        if key not in self._watches:
            own = weakref.ref(self)

            def forget(_: Any) -> None:
                guesses = own()
                if guesses is not None:
                    guesses._depths.pop(key, None)
                    guesses._watches.pop(key, None)

            try:
                self._watches[key] = [weakref.ref(anchor, forget) for anchor in anchors]
            except TypeError:  # no weak references to such an object
                return
        self._depths[key] = depth

    def __len__(self) -> int:
        return len(self._depths)

    def __reduce__(self) -> tuple[type[NestingGuesses], tuple[()]]:
        # Copies and pickles of a loss start without guesses: identities mean nothing there.
        return type(self), ()
