"""The record that an enclosing plate leaves on a site."""

from __future__ import annotations

from typing import Any, NamedTuple


class CondIndepStackFrame(NamedTuple):
    """One plate around a site.

    Two frames are equal when they are the same iteration of the same plate: `full_size` does not count.
    """

    name: str
    dim: int | None  # negative batch dim; None in a sequential plate
    size: int  # of the subsample; -1 when not known
    counter: int  # number of the iteration of a sequential plate, from 1; 0 otherwise
    full_size: int | None = None  # of the data

    @property
    def vectorized(self) -> bool:
        """Whether the plate is a batch dim rather than a loop."""
        return self.dim is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CondIndepStackFrame) and self[:4] == other[:4]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:4])

    def __str__(self) -> str:
        return self.name


def vectorized_frames(site: Any) -> list[CondIndepStackFrame]:
    """The frames of a site's vectorised plates, outermost first."""
    return [frame for frame in site["cond_indep_stack"] if frame.dim is not None]
