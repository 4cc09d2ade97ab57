"""Which tensor dims enumerated variables occupy, in the running thread."""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator
from itertools import islice

__all__ = ["EnumAllocator", "Iteration", "enum_allocator"]

# A tensor has at most 64 dims; parameters with one event dim fit beside a variable at the leftmost one.
MAX_DIM = 63
# Out of so many dims the one of longest ago is taken when dims are spread.
SPREAD = 16

# Names and counters of the sequential plates around a site, outermost first.
Iteration = tuple[tuple[str, int], ...]


class EnumAllocator:
    """Hands out dims for enumerated variables, from a first one leftwards, each with an id of its own.

    A dim may serve several variables of one run, along a chain. Ids are never used twice in a run: it is
    the id that tells variables apart.

    Attributes:
        dim_to_id: dims of the variables that every later site may depend on.
        local: the same for variables that only sites in one iteration of sequential plates may depend on.
        owners: the site whose variable was given the dim last.
        next_available_dim: where allocation starts; None: not set.
        next_available_id: the next id.
    """

    def __init__(self) -> None:
        self.dim_to_id: dict[int, int] = {}
        self.local: dict[Iteration, dict[int, int]] = {}
        self.owners: dict[int, str] = {}
        self.next_available_dim: int | None = None
        self.next_available_id = 0
        self._given: dict[int, int] = {}  # dim -> id of its last variable
        self._leftmost = 0

    def set_first_available_dim(self, first_available_dim: int) -> None:
        """Forget everything; the first variable gets this negative dim.

        Raises:
            ValueError: the dim is not a negative integer.
        """
        if not isinstance(first_available_dim, int) or first_available_dim >= 0:
            raise ValueError(
                f"Expected first_available_dim < 0 to index from the right, got {first_available_dim!r}"
            )
        self.__init__()  # type: ignore[misc]
        self.next_available_dim = first_available_dim

    def continue_to_the_left(self) -> None:
        """From now on only hand out dims left of all those in use."""
        if self.next_available_dim is not None and self._leftmost:
            self.next_available_dim = min(self.next_available_dim, self._leftmost - 1)

    @property
    def rightmost(self) -> int | None:
        """The rightmost dim of any variable, so far or next; None before the first dim is set."""
        if self.next_available_dim is None:
            return None
        return max(self.next_available_dim, max(self._given, default=self.next_available_dim))

    def visible(self, iteration: Iteration) -> dict[int, int]:
        """Dims and ids of the variables that a site may depend on, wherever it is in chains."""
        found = dict(self.dim_to_id)
        if self.local:
            for depth in range(1, len(iteration) + 1):
                found.update(self.local.get(iteration[:depth], ()))
        return found

    def allocate(self, name: str, taken: Container[int], spread: int | None = None) -> tuple[int, int]:
        """A free dim for the variable of site `name`, and a new id.

        Args:
            taken: dims of variables that the site, or one that also sees the site, may depend on.
            spread: None: the rightmost free dim. A number: one unused for long; each number gives other
                dims.

        Raises:
            ValueError: no first dim is set; no dim is left.
        """
        if self.next_available_dim is None:
            raise ValueError(
                "max_plate_nesting must be set to a finite value for parallel enumeration: enter"
                " enum(first_available_dim=-1 - max_plate_nesting) first"
            )
        number = self.next_available_id
        free = self._free(taken)
        if spread is None:
            dim = next(free, None)
        else:
            oldest = sorted(islice(free, SPREAD), key=lambda dim: self._given.get(dim, -1))
            # Not strictly in turn: a dependence on the variable 16 steps back must show, too.
            dim = oldest[hash((spread, number)) % max(1, len(oldest) // 4)] if oldest else None
        if dim is None:
            raise ValueError(
                f"no tensor dim is left for the enumerated variable of site '{name}': a tensor has at most"
                f" {MAX_DIM + 1} dims, and so many variables are visible to it. Hide those that the site"
                " does not depend on, by loops in pyro.markov with a small history or by sequential plates,"
                " or put like variables in one vectorized plate"
            )
        self.next_available_id += 1
        self.owners[dim] = name
        self._given[dim] = number
        self._leftmost = min(self._leftmost, dim)
        return dim, number

    def keep(self, dim: int, number: int, iteration: Iteration) -> None:
        """Do not use the dim again: not at all, or not in this iteration of sequential plates."""
        (self.local.setdefault(iteration, {}) if iteration else self.dim_to_id)[dim] = number

    def _free(self, taken: Container[int]) -> Iterator[int]:
        start = self.next_available_dim
        assert start is not None
        return (dim for dim in range(start, -MAX_DIM - 1, -1) if dim not in taken)


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.allocator = EnumAllocator()


_STATE = _ThreadState()


def enum_allocator() -> EnumAllocator:
    """The allocator of the running thread."""
    return _STATE.allocator
