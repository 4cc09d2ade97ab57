"""The record of a `vectorized_markov` loop: how it ran, and its latent sites."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["MarkovChain", "Mode", "TimeIndex", "recorded_chain"]

# How the handlers around want chains to run: at once, where all states are enumerated; the same, where they
# are marked for it; at once, because values of many steps are given. None: one by one.
Mode = Literal["enumerated", "trial", "known"]


LEFT = "it was left before its other steps"


class TimeIndex(torch.Tensor):
    """The steps `start` to `stop - 1`, as an int64 tensor that site names show as a slice."""

    # Operators make ordinary tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    steps: slice

    @staticmethod
    def of(start: int, stop: int, device: Any = None) -> TimeIndex:
        index: TimeIndex = torch.arange(start, stop, device=device).as_subclass(TimeIndex)
        index.steps = slice(start, stop)
        return index

    def __str__(self) -> str:
        return str(self.steps)

    def __format__(self, spec: str) -> str:
        return format(str(self.steps), spec)


class MarkovChain:
    """What a run of a chain looked like.

    Attributes:
        name, size, history: as given to `vectorized_markov`.
        dim: of the steps that run at once; None: not given, and none of them did.
        first: the latent sites of each of the first steps, in order.
        previous: the same of each auxiliary step: `previous[k]` has the states of `history - k` steps before.
        current: the same of all other steps.
        mode: how it was to run.
        reason: why the steps ran one by one; None when they ran at once.
        is_complete: whether the loop ran to its end.
    """

    def __init__(self, name: str, size: int, dim: int | None, history: int) -> None:
        self.name, self.size, self.dim, self.history = name, size, dim, history
        self.first: list[list[Any]] = []
        self.previous: list[list[Any]] = []
        self.current: list[Any] = []
        self.mode: Mode | None = None
        self.reason: str | None = LEFT
        self.is_complete = False

    @property
    def may_run_at_once(self) -> bool:
        """Whether the steps run at once, or it is not known yet."""
        return self.reason is None or self.reason is LEFT

    @property
    def steps(self) -> int:
        """How many steps run at once."""
        return self.size - self.history

    @property
    def many(self) -> str:
        """These steps in names of sites."""
        return str(slice(self.history, self.size))

    def settle(self) -> None:
        """Keep copies of the sites, which do not refer back to the chain: no cycle is left to collect."""
        if self.reason is not None:
            self.first, self.previous, self.current = [], [], []
            return
        itself = weakref.ref(self)

        def copied(site: Any) -> Any:
            return {**site, "infer": {**site["infer"], "_chain": itself}}

        self.first = [[copied(site) for site in sites] for sites in self.first]
        self.previous = [[copied(site) for site in sites] for sites in self.previous]
        self.current = [copied(site) for site in self.current]

    # ---- names

    def names_of_many(self, t: int, name: str) -> list[str]:
        """What the site that is called `name` at step `t` may be called at many steps."""
        places = [found.span() for found in re.finditer(rf"(?<!\d){t}(?!\d)", name)]
        # Mostly the step comes last; other numbers may be equal to it by chance.
        return [name[:start] + self.many + name[end:] for start, end in reversed(places)]

    def names_at_steps(self, t: int, name: str) -> re.Pattern[str]:
        """Names of the same site at single steps."""
        parts = re.split(rf"(?<!\d){t}(?!\d)", name)
        return re.compile(r"\d+".join(map(re.escape, parts)))

    # ---- values, when those of all steps are known

    def states_at(self, t: int) -> Iterator[Any]:
        """The values of a step's latent sites."""
        if t < self.history:
            for site in self.first[t]:
                yield site["value"]
            return
        for site in self.current:
            value = site["value"]
            axis = self._axis(site)
            if value.dim() < -axis or value.shape[axis] == 1:
                yield value
            elif value.dim() == -axis:
                yield value[t - self.history]
            else:
                yield value.narrow(axis, t - self.history, 1)

    def shifted(self, state: int, lag: int, many: Tensor) -> Tensor:
        """The values of a state at the steps from `lag` on, of which the last have the values `many`."""
        site = self.first[0][state]
        axis = self._axis(site)
        if many.dim() < -axis or many.shape[axis] not in (1, self.steps):
            name = self.names_of_many(0, site["name"])[0]
            raise ValueError(
                f"vectorized_markov '{self.name}': values of '{name}' must have {self.steps} steps at dim"
                f" {axis}, but their shape is {tuple(many.shape)}"
            )
        pieces = [sites[state]["value"] for sites in self.first[lag:]]
        rank = max(-axis, *(piece.dim() for piece in (*pieces, many)))
        pieces = [piece.reshape((1,) * (rank - piece.dim()) + piece.shape) for piece in (*pieces, many)]
        shape = list(torch.broadcast_shapes(*(piece.select(axis, 0).shape for piece in pieces)))
        sizes = [1] * (len(pieces) - 1) + [self.steps]
        at = rank + axis
        whole = [
            piece.expand([*shape[:at], size, *shape[at:]]) for piece, size in zip(pieces, sizes, strict=True)
        ]
        return torch.cat(whole, at).narrow(at, 0, self.steps)

    def _axis(self, site: Any) -> int:
        """Where the steps are in the site's values."""
        assert self.dim is not None
        return self.dim - len(getattr(site["fn"], "_event_shape", ()))


def recorded_chain(site: Any) -> MarkovChain | None:
    """The chain that a site of a trace belongs to."""
    chain: MarkovChain | weakref.ref[MarkovChain] | None = site["infer"].get("_chain")
    return chain() if isinstance(chain, weakref.ref) else chain
