"""What 1,000 further steps of `SVI.step` leave behind: Python objects, resident memory, cyclic garbage.

Each program first makes 200 steps.  Then the garbage collector's live objects and the resident size are read,
1,000 steps are made, and both are read again.  Cyclic garbage is what one step leaves for the garbage
collector, because reference counts alone do not free it; while it waits, it keeps its tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import sumprod
from _harness import Bench, guarded, optional_import
from _svi import PACKAGES, THREADS, Step, SviProgram, started
from bench_svi_guides import automatic
from bench_svi_plates import hierarchical_regression, score_function_mixture
from bench_svi_step import normal_sites
from bench_svi_vae import autoencoder

WARM_STEPS, STEPS, GARBAGE_STEPS = 200, 1000, 50
# The interpreter's own caches fill at any time; a leak of one object in ten steps shows.
SLACK_OBJECTS = 100
SLACK_BYTES = 2 * 2**20


def renyi(pyro: Any) -> Any:
    return pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)


PROGRAMS = (
    SviProgram("20 Normal sites", normal_sites(20)),
    SviProgram("hierarchical regression, 20 of 200 rows", hierarchical_regression(20)),
    SviProgram("score-function mixture", score_function_mixture),
    SviProgram("autoencoder, batch 64", autoencoder(64, lambda pyro: pyro.infer.TraceMeanField_ELBO())),
    SviProgram("autoencoder, batch 64, RenyiELBO", autoencoder(64, renyi)),
    SviProgram("AutoNormal", automatic("AutoNormal")),
)


def resident_bytes() -> int | None:
    """Resident size after free memory went back to the system, where that can be read."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else None


def garbage_per_step(step: Step) -> float:
    """Unreachable objects in reference cycles, for each step."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(GARBAGE_STEPS):
            step()
        return gc.collect() / GARBAGE_STEPS
    finally:
        gc.enable()


def growth(program: SviProgram, library: ModuleType) -> tuple[int, int | None, float]:
    """Objects and bytes gained over `STEPS` steps, and cyclic garbage per step."""
    step, _ = started(program, library)
    for _ in range(WARM_STEPS):
        step()
    garbage = garbage_per_step(step)
    gc.collect()
    objects, size = len(gc.get_objects()), resident_bytes()
    for _ in range(STEPS):
        step()
    gc.collect()
    gained, size_after = len(gc.get_objects()) - objects, resident_bytes()
    grown = None if size is None or size_after is None else size_after - size
    return gained, grown, garbage


def megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:.2f}"


def main() -> int:
    bench = Bench("growth over 1,000 steps of SVI.step", __doc__ or "", PACKAGES, threads=THREADS)
    pyro = optional_import("pyro")
    for program in PROGRAMS:
        if not bench.wants(program.label):
            continue
        objects, size, garbage = growth(program, sumprod)
        met = objects <= SLACK_OBJECTS and (size is None or size <= SLACK_BYTES)
        row = {
            "case": program.label,
            "objects": f"{objects:+d}",
            "MB": f"{megabytes(size)} ({bench.verdict(met)})",
            "cyclic garbage per step": f"{garbage:.1f}",
        }
        if pyro is not None:
            objects, size, garbage = growth(program, pyro)
            row |= {"Pyro: objects": f"{objects:+d}", "MB ": megabytes(size), "garbage": f"{garbage:.1f}"}
        bench.add_row(row)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
