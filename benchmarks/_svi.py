"""`SVI.step` of one program under sumprod and under Pyro: check that they agree, then time them in turns.

A program is a function of the library to use; it builds model, guide, optimiser and loss and returns a
function that makes one step and gives the loss.  Both libraries run in this process: each has its own
parameter store, both draw from torch's generator.  Validation is on in both, as it is when Python starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import sumprod
from _harness import Bench, DisagreementError, Peer, guarded, optional_import

Step = Callable[[], float]

PACKAGES = ("pyro-ppl",)
THREADS = 1
# Steps from equal seeds whose losses must agree before anything is timed.
AGREEING_STEPS = 10
LOSS_RTOL = 1e-4
# "Never slower": the ratio of medians may fall short of 1 by the spread of the measurement.
NEVER_SLOWER = 1.0


@dataclass(frozen=True)
class SviProgram:
    """A row of a table: what it is, how to build it, and how many times faster than Pyro it must be."""

    label: str
    build: Callable[[Any], Step]
    at_least: float = NEVER_SLOWER


def started(program: SviProgram, library: ModuleType) -> tuple[Step, list[float]]:
    """Build a program from an empty parameter store and seed zero, and make the first steps."""
    library.clear_param_store()
    library.set_rng_seed(0)
    step = program.build(library)
    return step, [step() for _ in range(AGREEING_STEPS)]


def require_equal_losses(program: SviProgram, ours: Sequence[float], theirs: Sequence[float]) -> None:
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        if not math.isfinite(right) or not math.isclose(left, right, rel_tol=LOSS_RTOL, abs_tol=1e-4):
            raise DisagreementError(f"{program.label}, step {number}: loss {left:.9g}, Pyro's {right:.9g}")


def race_programs(title: str, description: str, programs: Sequence[SviProgram]) -> int:
    """Check and time all programs that the command line asks for; returns the exit status."""

    def main() -> int:
        bench = Bench(title, description, PACKAGES, threads=THREADS)
        pyro = optional_import("pyro")
        for program in programs:
            if not bench.wants(program.label):
                continue
            ours, our_losses = started(program, sumprod)
            peer = None
            if pyro is not None:
                peer, peer_losses = started(program, pyro)
                require_equal_losses(program, our_losses, peer_losses)
            bench.case(program.label, ours, [Peer("Pyro", peer, program.at_least)])
        return bench.finish()

    return guarded(main)


def stepper(
    pyro: Any, model: Any, guide: Any, loss: Any, optim: Any = None, args: tuple[Any, ...] = ()
) -> Step:
    """One `SVI.step` with Adam unless an optimiser is given."""
    if optim is None:
        optim = pyro.optim.Adam({"lr": 1e-3})
    svi = pyro.infer.SVI(model, guide, optim, loss=loss)
    return lambda: svi.step(*args)
