"""Sequences that put a trace together at each access."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from sumprod.handlers.trace_struct import Trace

__all__ = ["TraceSequence"]


class TraceSequence(Sequence[Trace]):
    """A read-only sequence of traces, indexed as a list is."""

    @abstractmethod
    def _trace(self, number: int) -> Trace:
        """Trace `number`, counted from 0."""

    def finish(self) -> None:
        """Complete what waits; to be called after the last trace was added."""

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trace]: ...
    def __getitem__(self, index: int | slice) -> Trace | list[Trace]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self._trace(number) for number in numbers]
        return self._trace(numbers)
