"""Peak memory of one `SVI.step` of an HMM with vectorised time, (B, T, S, D) = (64, 128, 16, 88).

It is compared with Pyro's loop. Each measurement is made in a fresh process. Growth is the peak resident size
during the first step minus the resident size just before it: the data are there already, and steps on short
sequences have loaded the code.
"""

from __future__ import annotations

import sys

import sumprod
from _harness import Bench, guarded
from _machine import limit_threads
from _memory import growth_in_child, growth_row, print_growth_of_step
from _svi import PACKAGES, THREADS
from _vectorized import Chains, first_losses, ours, pyro, pyro_loop

BATCH, STEPS, STATES, KEYS = 64, 128, 16, 88
WARM_STEPS = 4
AT_MOST = 1 / 5  # of Pyro's
BUILDERS = {"sumprod": ours, "pyro": pyro_loop}


def chains(steps: int, *, in_plate: bool) -> Chains:
    return Chains(BATCH, steps, (STATES,), KEYS, in_plate)


def child(library: str, in_plate: bool, threads: int) -> int:
    """Measure one step and print its growth in bytes."""
    limit_threads(threads)
    build = BUILDERS[library]
    first_losses(build(chains(WARM_STEPS, in_plate=in_plate)))
    (sumprod if library == "sumprod" else pyro).clear_param_store()  # type: ignore[union-attr]
    print_growth_of_step(build(chains(STEPS, in_plate=in_plate)))
    return 0


def main() -> int:
    bench = Bench("memory of SVI.step: HMM with vectorised time", __doc__ or "", PACKAGES, threads=THREADS)
    for in_plate in (False, True):
        label = chains(STEPS, in_plate=in_plate).label
        if not bench.wants(label):
            continue
        rest = (str(int(in_plate)), str(bench.options.threads))
        mine = growth_in_child(__file__, "sumprod", *rest)
        peer = growth_in_child(__file__, "pyro", *rest) if pyro is not None else None
        bench.add_row(growth_row(label, mine, peer, AT_MOST, bench.verdict))
    return bench.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], bool(int(sys.argv[3])), int(sys.argv[4])))
    sys.exit(guarded(main))
