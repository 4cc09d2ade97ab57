"""Peak memory of one `SVI.step` of an HMM written as a loop, (B, T, S, D) = (8, 800, 16, 88), against Pyro.

Each measurement is made in a fresh process. Growth is the peak resident size during the first step minus the
resident size just before it: the data are there already, and a step on a short sequence has loaded the code.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

from _enum import Workload, hmm_of_events, hmm_of_tones, piano_rolls
from _harness import Bench, DisagreementError, guarded, optional_import
from _machine import limit_threads
from _memory import peak_growth
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
    step = measured.build(pyro)
    losses: list[float] = []
    growth = peak_growth(lambda: losses.append(step()))
    print(json.dumps({"growth": growth, "loss": losses[0]}))
    return 0


def measure(library: str, form: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", library, form, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DisagreementError(f"memory of {library}, {form} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    bench = Bench("memory of SVI.step: HMM as a loop", __doc__ or "", PACKAGES, threads=THREADS)
    with_pyro = optional_import("pyro") is not None
    for form in FORMS:
        label = f"({BATCH},{STEPS},{STATES},{KEYS}), {form}"
        if not bench.wants(label):
            continue
        ours = measure("sumprod", form, bench.options.threads)
        row = {"case": label, "growth MB": f"{ours['growth'] / 1e6:.1f}"}
        if with_pyro:
            theirs = measure("pyro", form, bench.options.threads)
            if abs(ours["loss"] - theirs["loss"]) > 1e-4 * abs(theirs["loss"]):
                raise DisagreementError(f"{label}: loss {ours['loss']:.9g}, Pyro's {theirs['loss']:.9g}")
            share = ours["growth"] / theirs["growth"]
            row["Pyro: growth MB"] = f"{theirs['growth'] / 1e6:.1f}"
            row["ours / Pyro"] = f"{share:.2f} (<= {AT_MOST:.2f} {bench.verdict(share <= AT_MOST)})"
        bench.add_row(row)
    return bench.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    sys.exit(guarded(main))
