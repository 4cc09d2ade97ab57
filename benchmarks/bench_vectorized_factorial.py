"""One `SVI.step` of a factorial hidden Markov model with vectorised time, against three peers.

The data are piano rolls (B, T, D) of zeros and ones. Two chains of 4 states each move on their own; the keys
depend on both. The keys of a step are one event (`to_event(1)`) or a plate of tones. See `_vectorized.py` for
the programs.
"""

from __future__ import annotations

import sys

from _vectorized import Chains, Targets, race

TARGETS = Targets(loop=10.0, numpyro=2.0)
ROWS = {
    Chains(batch, steps, (4, 4), 88, in_plate): TARGETS
    for batch, steps in ((8, 60), (64, 128))
    for in_plate in (False, True)
}

if __name__ == "__main__":
    sys.exit(race("SVI.step: factorial HMM with vectorised time", __doc__ or "", ROWS))
