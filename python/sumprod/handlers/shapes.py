"""The table of shapes that accompanies errors: which dims are plates, which are events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Row(NamedTuple):
    label: str
    batch: list[str]  # sizes, pushed to the right
    event: list[str] | None  # sizes after the bar; None: no bar


def shape_table(nodes: Mapping[str, Any], title: str, last_site: str | None = None) -> str:
    """Parameters, then samples: sizes of the batch dims, a bar, sizes of the event dims."""
    sites = []
    for name, site in nodes.items():
        sites.append((name, site))
        if name == last_site:
            break
    params = [
        _Row(name, [str(size) for size in getattr(site["value"], "shape", ())], None)
        for name, site in sites
        if site["type"] == "param"
    ]
    samples = [row for name, site in sites if site["type"] == "sample" for row in _sample_rows(name, site)]
    rows = params + samples
    label = max([len("Sample Sites:"), *(len(row.label) for row in rows)])
    columns = max([0, *(len(row.batch) for row in rows)])
    width = max([1, *(len(size) for row in rows for size in row.batch)])
    lines = [title, "Param Sites:".rjust(label)]
    lines += [_line(row, label, columns, width) for row in params]
    lines += ["Sample Sites:".rjust(label)]
    lines += [_line(row, label, columns, width) for row in samples]
    return "\n".join(lines)


def _sample_rows(name: str, site: Any) -> list[_Row]:
    batch_shape = getattr(site["fn"], "batch_shape", ())
    event_shape = getattr(site["fn"], "event_shape", ())
    shape = tuple(getattr(site["value"], "shape", ()))
    event_start = max(len(shape) - len(event_shape), 0)
    rows = [
        _Row(f"{name} dist", [*map(str, batch_shape)], [*map(str, event_shape)]),
        _Row("value", [*map(str, shape[:event_start])], [*map(str, shape[event_start:])]),
    ]
    if "log_prob" in site:
        rows.append(_Row("log_prob", [*map(str, getattr(site["log_prob"], "shape", ()))], []))
    return rows


def _line(row: _Row, label: int, columns: int, width: int) -> str:
    batch = [""] * (columns - len(row.batch)) + row.batch
    cells = [row.label.rjust(label), *(size.rjust(width) for size in batch)]
    if row.event is not None:
        cells += ["|", *row.event]
    return " ".join(cells).rstrip()
