"""Aligned columns of text, in which rows that repeat are written once."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

__all__ = ["Row", "clip", "collapsed", "columns", "listed", "wrapped"]

MOST_LINES = 40
FEWEST_REPEATS = 3
WIDEST_CELL = 36
WIDEST_LINE = 110

_NUMBER = re.compile(r"([0-9]+)")


def columns(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """One line per row, each column as wide as its widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        (" " * gap).join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def clip(text: str, width: int = WIDEST_CELL) -> str:
    """The text, cut to a width."""
    return text if len(text) <= width else text[: width - 3] + "..."


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotes; of many, the first ones and the last."""
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted if len(names) <= most else [*quoted[: most - 2], "...", quoted[-1]])


def wrapped(text: str, indent: str = "") -> str:
    """Text in lines of limited width; lines after the first are indented."""
    return textwrap.fill(text, WIDEST_LINE, subsequent_indent=indent, break_on_hyphens=False)


class Row(NamedTuple):
    """Cells about something with a name; `likeness` says what else is of the same kind."""

    name: str
    cells: tuple[str, ...]
    likeness: tuple[str, ...]

    @classmethod
    def of(cls, name: str, cells: Sequence[str], named: Container[int]) -> Row:
        """A row whose cells at the positions `named` mention names.

        Rows are alike when their other cells are equal, and the names in the former differ in numbers
        alone, by equal amounts: `z_5 | z_4 z_5` and `z_8 | z_7 z_8`. What follows an equals sign belongs
        to no name.
        """
        own = _numbers(name)
        likeness = (_relative(cell, own) if i in named else cell for i, cell in enumerate(cells))
        return cls(name, tuple(cells), tuple(likeness))


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in _NUMBER.findall(name)]


def _relative(cell: str, own: list[int]) -> str:
    return " ".join(_relative_word(word, own) for word in cell.split(" "))


def _relative_word(word: str, own: list[int]) -> str:
    word, equals, size = word.partition("=")
    parts = _NUMBER.split(word)
    numbers = [int(part) for part in parts[1::2]]
    origin = own if len(own) == len(numbers) else own[-1:] * len(numbers)
    if origin:
        parts[1::2] = [f"<{number - start}>" for number, start in zip(numbers, origin, strict=True)]
    return "".join(parts) + equals + size


def collapsed(head: Sequence[str], rows: Iterable[Row], full: bool = False) -> list[str]:
    """Lines of a table in which a row stands for all that are alike; with `full`, all rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    rows = list(rows)
    for row in rows:
        groups.setdefault(row.likeness, []).append(row)
    shown: list[Row] = []
    remarks: dict[int, str] = {}  # number of a row -> line after it
    for row in rows:
        group = groups[row.likeness]
        if full or len(group) < FEWEST_REPEATS:
            shown.append(row)
        elif row is group[0]:
            remarks[len(shown)] = (
                f"  {group[1].name} ... {group[-1].name}: same as {row.name} ({len(group) - 1:,} more)"
            )
            shown.append(row)
    left_out = 0
    if not full and len(shown) > MOST_LINES:
        left_out = len(shown) - MOST_LINES
        shown = shown[:MOST_LINES]
    top, *body = columns(
        [head, *([clip(cell) for cell in row.cells] if not full else row.cells for row in shown)]
    )
    lines = [top]
    for number, line in enumerate(body):
        lines.append(line)
        if number in remarks:
            lines.append(remarks[number])
    if left_out:
        lines.append(f"  ... {left_out:,} more rows: see table(full=True)")
    return lines
