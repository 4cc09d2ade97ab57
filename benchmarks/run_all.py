"""Run all benchmarks, or those named, each in its own process; tables go to benchmarks/results/.

    python benchmarks/run_all.py [--quick] [--threads N] [--strict] [name ...]

A name is a file name without `bench_` and `.py`, for example `hmm_viterbi`.  The exit status is not zero when
answers disagree or a program fails, and with --strict also when a target is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def programs() -> dict[str, Path]:
    return {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}


def run(name: str, path: Path, options: list[str]) -> int:
    print(f"\n=== {name}", flush=True)
    command = [sys.executable, str(path), "--markdown", str(RESULTS / f"{name}.md"), *options]
    return subprocess.run(command, check=False).returncode


def targets_line(name: str) -> str:
    """The last line about targets in a result file."""
    path = RESULTS / f"{name}.md"
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in reversed(lines) if line.startswith("Targets:")), "no result")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="benchmarks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, heavy cases left out")
    parser.add_argument("--strict", action="store_true", help="a missed target is a failure")
    parser.add_argument("--threads", type=int, help="processors everybody may use (default: all)")
    given = parser.parse_args()
    known = programs()
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(known)}")
    options = ["--quick"] * given.quick + ["--strict"] * given.strict
    if given.threads is not None:
        options += ["--threads", str(given.threads)]
    summary, worst = [], 0
    for name in given.names or list(known):
        start = time.perf_counter()
        (RESULTS / f"{name}.md").unlink(missing_ok=True)
        status = run(name, known[name], options)
        worst = max(worst, abs(status))
        took = time.perf_counter() - start
        outcome = {0: "ok", 1: "failed", 2: "ANSWERS DISAGREE"}.get(status, f"exit {status}")
        summary.append(f"{name:28s} {took:6.0f} s  {outcome:18s} {targets_line(name)}")
    print("\n=== summary\n" + "\n".join(summary), flush=True)
    return min(worst, 125)


if __name__ == "__main__":
    sys.exit(main())
