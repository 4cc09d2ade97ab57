"""Python processes that see this installation of sumprod, or a copy of it that a test breaks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import sumprod
from sumprod import _native

State = Literal["whole", "absent", "damaged"]

# An editable install answers `import sumprod` before the search path is looked at.
FORGET_EDITABLE_INSTALL = """\
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
"""


class Run(NamedTuple):
    """What a finished process left."""

    code: int
    out: str
    error: str


def copy_package(folder: Path, ops: State = "whole", planner: State = "whole") -> Path:
    """A copy of the package in `folder`, for `run_python(package=...)`."""
    package = folder / "sumprod"
    source = Path(sumprod.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    spec = importlib.util.find_spec("sumprod._planner")
    assert spec is not None
    assert spec.origin is not None
    for original, state in ((_native.library_path, ops), (Path(spec.origin), planner)):
        copy = package / original.name
        if state == "whole":
            copy.symlink_to(original.resolve())
        elif state == "damaged":
            copy.write_bytes(b"not a library")
    (folder / "sitecustomize.py").write_text(FORGET_EDITABLE_INSTALL)
    return folder


def run_python(*arguments: str, package: Path | None = None, **environment: str) -> Run:
    """Run this Python, with the installed package or with a copy made by `copy_package`."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SUMPROD_")}
    if package is not None:
        variables["PYTHONPATH"] = str(package)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**variables, **environment},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Run(done.returncode, done.stdout, done.stderr)
