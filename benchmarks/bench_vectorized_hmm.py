"""One `SVI.step` of a hidden Markov model with vectorised time, its states summed out, against three peers.

The data are piano rolls (B, T, D) of zeros and ones; S states. The keys of a step are one event
(`to_event(1)`) or a plate of tones. See `_vectorized.py` for the programs.
"""

from __future__ import annotations

import sys

from _vectorized import Chains, Targets, race

TARGETS = Targets(loop=30.0, funsor=5.0, numpyro=3.0)
ROWS = {
    Chains(batch, steps, (16,), 88, in_plate): TARGETS
    for batch, steps in ((8, 60), (64, 128))
    for in_plate in (False, True)
}

if __name__ == "__main__":
    sys.exit(race("SVI.step: HMM with vectorised time", __doc__ or "", ROWS))
