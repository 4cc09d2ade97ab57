"""Peak memory of one call, measured by the process that makes it."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path


def peak_growth(call: Callable[[], object]) -> int:
    """Peak resident bytes during a call minus those before it (where Linux is not: minus the peak so far)."""
    reset = _reset_peak()
    before = (_status_bytes("VmRSS") if reset else None) or _peak_ever()
    result = call()
    peak = (_status_bytes("VmHWM") if reset else None) or _peak_ever()
    del result
    return peak - before


def _peak_ever() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status_bytes(field: str) -> int | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return None


def _reset_peak() -> bool:
    """Linux: give freed memory back, so that its reuse counts, and restart VmHWM from the current size."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
