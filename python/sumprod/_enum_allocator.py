"""Which tensor dims enumerated variables occupy, in the running thread."""

from __future__ import annotations

import threading
from collections.abc import Container

__all__ = ["EnumAllocator", "enum_allocator"]


class EnumAllocator:
    """Hands out dims for enumerated variables, from a first one leftwards, each with an id of its own.

    A dim may serve several variables of one run, along a chain. Ids are never used twice in a run: it is
    the id that tells variables apart.

    Attributes:
        dim_to_id: dims of the variables that every later site may depend on.
        next_available_dim: where allocation starts; None: not set.
        next_available_id: the next id.
    """

    def __init__(self) -> None:
        self.dim_to_id: dict[int, int] = {}
        self.next_available_dim: int | None = None
        self.next_available_id = 0
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

    def allocate(self, taken: Container[int] = (), everywhere: bool = True) -> tuple[int, int]:
        """The rightmost free dim that is not `taken`, and a new id.

        Args:
            taken: dims of variables that the site may depend on.
            everywhere: every later site may depend on the variable, so that its dim is not used again.

        Raises:
            ValueError: no first dim is set.
        """
        dim = self.next_available_dim
        if dim is None:
            raise ValueError(
                "max_plate_nesting must be set to a finite value for parallel enumeration: enter"
                " enum(first_available_dim=-1 - max_plate_nesting) first"
            )
        while dim in taken or dim in self.dim_to_id:
            dim -= 1
        number = self.next_available_id
        self.next_available_id += 1
        self._leftmost = min(self._leftmost, dim)
        if everywhere:
            self.dim_to_id[dim] = number
        return dim, number


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.allocator = EnumAllocator()


_STATE = _ThreadState()


def enum_allocator() -> EnumAllocator:
    """The allocator of the running thread."""
    return _STATE.allocator
