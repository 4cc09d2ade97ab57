"""The command line, the processors, and what the machine is and does meanwhile."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from sumprod import _native


@dataclass
class Options:
    """What the command line asked for."""

    threads: int
    quick: bool
    strict: bool
    budget: float
    markdown: Path | None
    only: str


def parse_options(
    description: str, argv: Sequence[str] | None = None, *, threads: int | None = None
) -> Options:
    """Read the options that every benchmark understands; `threads` is the default (all processors)."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    available = len(_processors())
    parser.add_argument("--threads", type=int, default=threads or available, help="processors for everybody")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, heavy cases left out")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--budget", type=float, help="seconds of timing per case (default 6, quick 1)")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--only", default="", help="run only cases whose label contains this text")
    given = parser.parse_args(argv)
    if not 1 <= given.threads <= available:
        parser.error(f"--threads must be between 1 and {available} on this machine, got {given.threads}")
    budget = given.budget if given.budget is not None else (1.0 if given.quick else 6.0)
    return Options(given.threads, given.quick, given.strict, budget, given.markdown, given.only)


def _processors() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def limit_threads(count: int) -> None:
    """Keep this process, with threads that already exist, on `count` processors."""
    allowed = _processors()[:count]
    if hasattr(os, "sched_setaffinity"):
        tasks = Path("/proc/self/task")
        for task in [int(entry.name) for entry in tasks.iterdir()] if tasks.exists() else [0]:
            os.sched_setaffinity(task, allowed)
    torch.set_num_threads(count)


def machine_line(threads: int, packages: Sequence[str]) -> str:
    """Processor, threads and versions; nothing that identifies the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    level = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", *packages))
    native = _native.build_info()
    return (
        f"{model} ({level}), {threads} of {os.cpu_count()} processors, {platform.system()}, sumprod built by "
        f"{native['compiler']} running {native['isa']}, Python {platform.python_version()}, {versions}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


class OtherLoad:
    """How much of the machine other processes used since this object was made (Linux; else unknown)."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        fields = [float(x) for x in stat.read_text().splitlines()[0].split()[1:9]]
        tick = float(os.sysconf("SC_CLK_TCK"))
        own = sum(os.times()[:4])
        return (sum(fields) - fields[3] - fields[4]) / tick, own, sum(fields) / tick

    def share(self) -> float | None:
        now = self._read()
        if now is None or self._start is None or now[2] <= self._start[2]:
            return None
        busy, own, total = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - own) / total
