"""Exceptions of our own."""

from __future__ import annotations

__all__ = ["SupportError"]


class SupportError(ValueError):
    """Every path of a model has weight zero, so there is nothing to decode or to sample.

    Attributes:
        batch_index: which batch element; an int, or a tuple when there are several batch dims
            (empty when there is none).
        time: the first time step at which no state is possible any more.
    """

    def __init__(self, message: str, batch_index: int | tuple[int, ...], time: int) -> None:
        super().__init__(message)
        self.batch_index = batch_index
        self.time = time

    def __reduce__(self) -> tuple[type[SupportError], tuple[str, int | tuple[int, ...], int]]:
        return type(self), (str(self), self.batch_index, self.time)
