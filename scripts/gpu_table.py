"""Prints the one table of scripts/gpu_check.sh from the folder in which its steps left their results."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

TESTS = {"test": "operator tests on the GPU", "infer": "inference on the GPU"}
TOOLS = ("memcheck", "racecheck", "synccheck")


def outcome(state: Path, step: str) -> str:
    """What became of a step: its exit code is in a file, if it was run."""
    path = state / f"{step}.code"
    if not path.exists():
        return "not run"
    code = path.read_text().strip()
    return {"0": "ok", "124": "FAILED: out of time"}.get(code, f"FAILED (exit {code})")


def plain(text: str) -> str:
    """On one line, and short."""
    return re.sub(r"\s+", " ", text)[:140]


def tests(state: Path, step: str) -> tuple[str, list[str]]:
    """Counts of one pytest run, and lines about what did not pass."""
    path = state / f"{step}.xml"
    if not path.exists():
        return outcome(state, step), []
    cases = list(ElementTree.parse(path).iter("testcase"))
    lines: list[str] = []
    skipped: Counter[str] = Counter()
    bad = 0
    for case in cases:
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is not None:
                bad += 1
                lines.append(f"{kind}: {case.get('name')}: {plain(found.get('message') or '')}")
        found = case.find("skipped")
        if found is not None:
            skipped[plain(found.get("message") or "")] += 1
    lines = lines[:25] + ([f"... and {len(lines) - 25} more"] if len(lines) > 25 else [])
    lines += [f"skipped {count}: {reason}" for reason, count in skipped.most_common()]
    left_out = state / f"{step}.left_out"
    if left_out.exists() and left_out.read_text():
        names = ", ".join(Path(name).stem for name in left_out.read_text().split())
        lines.append(f"not collected, a peer is not installed: {names}")
    passed = len(cases) - bad - skipped.total()
    return f"{outcome(state, step)}: {passed} passed, {bad} failed, {skipped.total()} skipped", lines


def main(folder: str) -> int:
    state = Path(folder)
    rows: list[tuple[str, str, list[str]]] = [("build", outcome(state, "build"), [])]
    rows += [(title, *tests(state, step)) for step, title in TESTS.items()]
    rows += [(tool, outcome(state, tool), []) for tool in TOOLS]
    rows.append(("benchmark", outcome(state, "bench"), []))
    for name, text, lines in rows:
        print(f"{name:28s}{text}")
        for line in lines:
            print(f"    {line}")
    measured = state / "gpu.md"
    if measured.exists():
        print(measured.read_text())
    return int(any("FAILED" in text for _, text, _ in rows))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1]))
