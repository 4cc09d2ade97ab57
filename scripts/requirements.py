"""Prints requirements named in pyproject.toml, one a line, for `pip install -r`.

    python scripts/requirements.py build     what the build needs
    python scripts/requirements.py EXTRA     an optional dependency group, such as lint or bench

Every version is written once, in pyproject.toml; the Makefile asks here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip brings a parser
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match.group().lower() if match else ""


def requirements(group: str, table: dict[str, Any]) -> list[str]:
    if group == "build":
        build: list[str] = table["build-system"]["requires"]
        return build
    extras: dict[str, list[str]] = table["project"]["optional-dependencies"]
    if group not in extras:
        raise SystemExit(f"no group {group!r}; there are: build, {', '.join(extras)}")
    # `sumprod[examples]` inside an extra means that group, not the package.
    inner = [r[r.index("[") + 1 : r.index("]")] for r in extras[group] if name_of(r) == "sumprod"]
    own = [r for r in extras[group] if name_of(r) != "sumprod"]
    return own + [r for other in inner for r in requirements(other, table)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print("\n".join(requirements(sys.argv[1], tomllib.loads(PYPROJECT.read_text()))))
