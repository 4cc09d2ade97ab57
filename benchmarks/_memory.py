"""Peak memory of one call, measured by the process that makes it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from _harness import DisagreementError


def print_growth_of_step(step: Callable[[], float]) -> None:
    """What a child process says about one step: how much memory it took, and its loss."""
    losses: list[float] = []
    growth = peak_growth(lambda: losses.append(step()))
    print(json.dumps({"growth": growth, "loss": losses[0]}))


def growth_in_child(script: str, *arguments: str) -> dict[str, float]:
    """What `script --child *arguments`, a process of its own, printed by `print_growth_of_step`."""
    command = [sys.executable, script, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DisagreementError(f"memory of {', '.join(arguments)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth_row(
    label: str,
    ours: dict[str, float],
    peer: dict[str, float] | None,
    at_most: float,
    verdict: Callable[[bool], str],
) -> dict[str, str]:
    """A row of a table, once the losses agree; `at_most` is ours as a share of Pyro's."""
    row = {"case": label, "growth MB": f"{ours['growth'] / 1e6:.1f}"}
    if peer is not None:
        if abs(ours["loss"] - peer["loss"]) > 1e-4 * abs(peer["loss"]):
            raise DisagreementError(f"{label}: loss {ours['loss']:.9g}, Pyro's {peer['loss']:.9g}")
        share = ours["growth"] / peer["growth"]
        row["Pyro: growth MB"] = f"{peer['growth'] / 1e6:.1f}"
        row["ours / Pyro"] = f"{share:.2f} (<= {at_most:.2f} {verdict(share <= at_most)})"
    return row


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
