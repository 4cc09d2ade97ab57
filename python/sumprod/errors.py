"""Exceptions of our own."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

__all__ = ["MemoryBudgetError", "SupportError", "add_detail", "describe_plates", "describe_site"]


class SupportError(ValueError):
    """Every path of a model has weight zero, so there is nothing to decode or to sample.

    Attributes:
        batch_index: which batch element; an int, or a tuple when there are several batch dims
            (empty when there is none).
        time: the first time step at which no state is possible any more; of a program, the place of `site`
            along its `markov` chain, None outside of chains.
        site: of a program, the first site whose density leaves no assignment possible; else None.
        plate_index: plate name -> index of the first impossible element, for the plates around all
            sites that are listed in `factors`.
        factors: names of the sites of the program that are impossible together.
    """

    def __init__(
        self,
        message: str,
        batch_index: int | tuple[int, ...] = (),
        time: int | None = None,
        site: str | None = None,
        plate_index: Mapping[str, int] | None = None,
        factors: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.batch_index = batch_index
        self.time = time
        self.site = site
        self.plate_index = dict(plate_index or {})
        self.factors = factors

    def __reduce__(self) -> tuple[type[SupportError], tuple[Any, ...]]:
        found = (self.batch_index, self.time, self.site, self.plate_index, self.factors)
        return type(self), (str(self), *found)


class MemoryBudgetError(MemoryError):
    """A contraction would need more memory than the setting or option `memory_budget` allows.

    Attributes:
        needed: bytes of intermediate tensors.
        budget: bytes allowed.
        variables: the variables of the widest intermediate tensor.
        plates: its plates.
    """

    def __init__(
        self,
        message: str,
        needed: int = 0,
        budget: int = 0,
        variables: tuple[Hashable, ...] = (),
        plates: tuple[Hashable, ...] = (),
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.budget = budget
        self.variables = variables
        self.plates = plates

    def __reduce__(self) -> tuple[type[MemoryBudgetError], tuple[Any, ...]]:
        return type(self), (str(self), self.needed, self.budget, self.variables, self.plates)


def add_detail(error: BaseException, text: str) -> None:
    """Append lines to the text of an error, which stays the same object of the same class.

    An error whose text is not its only argument gets a note (`__notes__`) instead: its class may
    give its arguments another meaning.
    """
    plain = type(error).__str__ in (BaseException.__str__, Exception.__str__)
    if plain and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{text}",)
    else:
        notes: list[str] = getattr(error, "__notes__", [])
        error.__notes__ = [*notes, text]  # type: ignore[attr-defined]


def describe_site(error: BaseException, site: Any) -> None:
    """Say at which site an error arose, and in which plates, unless an inner site has said so.

    Sets `error.site` (name) and `error.plates` (frames, outermost first).
    """
    name = site["name"]
    if name is None or hasattr(error, "site"):
        return
    error.site = name  # type: ignore[attr-defined]
    error.plates = site["cond_indep_stack"]  # type: ignore[attr-defined]
    add_detail(error, f"at {site['type']} site '{name}'{describe_plates(site['cond_indep_stack'])}")


def describe_plates(stack: Iterable[Any]) -> str:
    """Text that follows a site's name: the plates it is in, outermost first; empty without plates."""
    plates = [f"'{frame.name}' ({_extent(frame)})" for frame in stack]
    return f" in plate {', '.join(plates)}" if plates else ""


def _extent(frame: Any) -> str:
    size = "unknown" if frame.size == -1 else frame.size
    return f"step {frame.counter} of {size}" if frame.dim is None else f"dim={frame.dim}, size={size}"
