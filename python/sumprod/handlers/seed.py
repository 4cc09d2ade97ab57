"""Run a program with seeded generators."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from sumprod._random import get_rng_state, set_rng_seed, set_rng_state
from sumprod.handlers.messenger import Messenger, make_handler


class SeedMessenger(Messenger):
    """Seed the random generators on entry; on exit they go on as if nothing had been drawn.

    Args:
        rng_seed: a non-negative int.
    """

    def __init__(self, rng_seed: int) -> None:
        super().__init__()
        if not isinstance(rng_seed, int) or isinstance(rng_seed, bool):
            raise TypeError(f"Expected rng_seed to be an int, got {type(rng_seed).__name__}")
        self.rng_seed = rng_seed
        self._outer_state: Any = None

    def __enter__(self) -> Any:
        super().__enter__()
        self._outer_state = get_rng_state()
        set_rng_seed(self.rng_seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        set_rng_state(self._outer_state)
        self._outer_state = None
        return super().__exit__(kind, error, traceback)


_seed = make_handler(SeedMessenger)


def seed(fn: Callable[..., Any] | int | None = None, rng_seed: int | None = None) -> Any:
    """`SeedMessenger` as `seed(fn, rng_seed)`, `seed(rng_seed)` or `seed(rng_seed=1)`."""
    if isinstance(fn, int) and rng_seed is None:
        fn, rng_seed = None, fn
    if rng_seed is None:
        raise ValueError("seed needs rng_seed: seed(fn, rng_seed=0)")
    return _seed(fn, rng_seed=rng_seed)
