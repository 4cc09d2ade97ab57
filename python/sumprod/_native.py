"""Loads the native operators; `ops` is their namespace, `torch.ops.sumprod`.

Importing this module is what registers the operators. It fails, with the likely causes and every
error met on the way, when the library is missing or does not load.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["NativeLibraryError", "build_info", "library_path", "ops"]

_MINIMUM_TORCH = (2, 10)


class NativeLibraryError(ImportError):
    """The compiled part of sumprod is missing or cannot be loaded."""


def _candidates() -> list[Path]:
    # Looked for as a module, because that is what makes an editable install compile what changed.
    spec = importlib.util.find_spec("sumprod._ops")
    if spec is not None and spec.origin is not None:
        return [Path(spec.origin)]
    # Elsewhere beside the Python files; the package may be spread over several folders.
    package = sys.modules[__package__ or "sumprod"]
    return [Path(folder) / "_ops.so" for folder in package.__path__]


def _explain(errors: list[str]) -> str:
    version = torch.__version__
    causes = []
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < _MINIMUM_TORCH:
        causes.append(f"torch {version} is too old: sumprod needs torch >= 2.10 (pip install -U torch)")
    if not any(path.exists() for path in _candidates()):
        causes.append("the package was not built: install a wheel, or run `pip install .` in its folder")
        causes.append(
            "the working directory holds a source tree named sumprod that hides the installed package"
        )
    else:
        causes.append(
            "the wheel was built for another platform or a newer C++ runtime (pip install --force-reinstall)"
        )
        causes.append("SUMPROD_ISA names an instruction set that this processor lacks (unset it)")
    lines = ["sumprod cannot load its native operators.", "Likely causes:"]
    lines += [f"  - {cause}" for cause in causes]
    lines += ["What was tried:"] + [f"  - {error}" for error in errors]
    lines += [
        f"torch {version}, Python {sys.version.split()[0]}, SUMPROD_ISA={os.environ.get('SUMPROD_ISA')!r}"
    ]
    return "\n".join(lines)


def _load() -> Path:
    errors = []
    for path in _candidates():
        if not path.exists():
            errors.append(f"{path}: no such file")
            continue
        try:
            torch.ops.load_library(str(path))
            # Also settles which instruction set is used, so that a bad SUMPROD_ISA shows here.
            torch.ops.sumprod._build_info()
            return path
        except (OSError, RuntimeError, AttributeError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
            errors.append(f"{path}: {type(error).__name__}: {error}{cause}")
    raise NativeLibraryError(_explain(errors))


library_path: Path = _load()
ops: Any = torch.ops.sumprod


def build_info() -> dict[str, str]:
    """How the native library was built and which instruction set it uses."""
    text: str = ops._build_info()
    return dict(line.split("=", 1) for line in text.splitlines())
