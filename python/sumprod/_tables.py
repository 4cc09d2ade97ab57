"""Aligned columns of text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["clip", "columns"]


def columns(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """One line per row, each column as wide as its widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        (" " * gap).join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def clip(text: str, width: int) -> str:
    """The text, cut to a width."""
    return text if len(text) <= width else text[: width - 3] + "..."
