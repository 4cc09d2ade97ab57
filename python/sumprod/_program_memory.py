"""Something remembered per program, or per tuple of programs, for as long as they live."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

__all__ = ["ProgramMemory"]

V = TypeVar("V")


class ProgramMemory(Generic[V]):
    """A value per tuple of programs. Entries disappear with the programs they belong to.

    Programs are told apart by identity; bound methods by their object and function. A program to which
    no weak reference can be made is not remembered.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, ...], V] = {}
        # What keeps the ids in `_values` meaningful: an id may be used again after its object dies.
        self._watches: dict[tuple[int, ...], list[Any]] = {}

    @staticmethod
    def _anchors(programs: tuple[Any, ...]) -> list[Any]:
        anchors: list[Any] = []
        for program in programs:
            owner = getattr(program, "__self__", None)
            function = getattr(program, "__func__", None)
            anchors += [program, program] if owner is None or function is None else [owner, function]
        return anchors

    def get(self, *programs: Any) -> V | None:
        """The value for these programs, or None."""
        return self._values.get(tuple(map(id, self._anchors(programs))))

    def set(self, *programs: Any, value: V) -> None:
        """Remember the value for these programs."""
        anchors = self._anchors(programs)
        key = tuple(map(id, anchors))
        if key not in self._watches:
            own = weakref.ref(self)

            def forget(_: Any) -> None:
                memory = own()
                if memory is not None:
                    memory._values.pop(key, None)
                    memory._watches.pop(key, None)

            try:
                self._watches[key] = [weakref.ref(anchor, forget) for anchor in anchors]
            except TypeError:  # no weak references to such an object
                return
        self._values[key] = value

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[type[ProgramMemory[V]], tuple[()]]:
        # Copies and pickles start empty: identities mean nothing there.
        return type(self), ()
