"""Run a program once per partial trace of a queue, extending each at the first site it lacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sumprod.handlers.escape import escape
from sumprod.handlers.replay import replay
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import discrete_escape, enum_extend
from sumprod.runtime import NonlocalExit

MAX_TRIES = 1_000_000


def queue(
    fn: Callable[..., Any] | None = None,
    queue: Any = None,
    max_tries: int | None = None,
    extend_fn: Callable[..., list[Trace]] | None = None,
    escape_fn: Callable[[Trace, Any], bool] | None = None,
    num_samples: int | None = None,
) -> Any:
    """Sequential enumeration, by default of every discrete site.

    A call takes a partial trace from the queue and replays it. At the first site that `escape_fn`
    accepts the run is left, one extended trace per value goes into the queue, and the next trace is
    taken, until a run completes; its value is returned. Calling until the queue is empty visits every
    combination.

    Args:
        queue: has `get`, `put` and `empty`; must hold a trace, to begin with an empty one.
        max_tries: runs per call; default 1,000,000.
        extend_fn: (trace, site, num_samples=) -> extended traces.
        escape_fn: (trace, site) -> whether to extend here.
        num_samples: at most so many extensions at a site.

    Raises:
        AssertionError: (while running) the queue is empty.
        ValueError: (while running) no run completed within max tries.
    """
    tries = MAX_TRIES if max_tries is None else int(max_tries)
    extend = enum_extend if extend_fn is None else extend_fn
    accepts = discrete_escape if escape_fn is None else escape_fn

    def wrap(program: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(program)
        def run(*args: Any, **kwargs: Any) -> Any:
            for _ in range(tries):
                if queue.empty():
                    raise AssertionError("trying to get() from an empty queue: put a Trace into it first")
                partial = queue.get()
                replayed = replay(program, trace=partial)
                try:
                    return escape(replayed, escape_fn=functools.partial(accepts, partial))(*args, **kwargs)
                except NonlocalExit as exit:
                    exit.reset_stack()
                    for extended in extend(partial, exit.site, num_samples=num_samples):
                        queue.put(extended)
            raise ValueError(f"max tries ({tries}) exceeded: every run stopped at a site to be extended")

        return run

    return wrap if fn is None else wrap(fn)
