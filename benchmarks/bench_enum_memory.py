"""Peak memory of one `SVI.step` of an HMM written as a loop, (B, T, S, D) = (8, 800, 16, 88), against Pyro.

Each measurement is made in a fresh process. Growth is the peak resident size during the first step minus the
resident size just before it: the data are there already, and a step on a short sequence has loaded the code.
"""

from __future__ import annotations

import importlib
import sys

from _enum import Workload, hmm_of_events, hmm_of_tones, piano_rolls
from _harness import Bench, guarded, optional_import
from _machine import limit_threads
from _memory import growth_in_child, growth_row, print_growth_of_step
from _svi import PACKAGES, THREADS, started

BATCH, STEPS, STATES, KEYS = 8, 800, 16, 88
WARM_STEPS = 4
AT_MOST = 1 / 3  # of Pyro's
FORMS = {"keys are an event": hmm_of_events, "keys are a plate": hmm_of_tones}


def child(library: str, form: str, threads: int) -> int:
    """Measure one step and print its growth in bytes."""
    limit_threads(threads)
    pyro = importlib.import_module(library)
    warm, measured = (
        Workload(form, FORMS[form](piano_rolls(BATCH, steps, KEYS), STATES), 1.0).program()
        for steps in (WARM_STEPS, STEPS)
    )
    started(warm, pyro)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    print_growth_of_step(measured.build(pyro))
    return 0


def main() -> int:
    bench = Bench("memory of SVI.step: HMM as a loop", __doc__ or "", PACKAGES, threads=THREADS)
    with_pyro = optional_import("pyro") is not None
    for form in FORMS:
        label = f"({BATCH},{STEPS},{STATES},{KEYS}), {form}"
        if not bench.wants(label):
            continue
        rest = (form, str(bench.options.threads))
        ours = growth_in_child(__file__, "sumprod", *rest)
        theirs = growth_in_child(__file__, "pyro", *rest) if with_pyro else None
        bench.add_row(growth_row(label, ours, theirs, AT_MOST, bench.verdict))
    return bench.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    sys.exit(guarded(main))
