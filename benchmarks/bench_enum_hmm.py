"""One `SVI.step` of a hidden Markov model written as a Python loop, its states summed out, against Pyro.

The data are piano rolls (B, T, D) of zeros and ones; S states, each with its own probability of every key.
Transitions and probabilities have priors and are point estimates (AutoDelta). The keys of a step are either
one event (`to_event(1)`) or a plate of tones.
"""

from __future__ import annotations

import sys

from _enum import Workload, hmm_of_events, hmm_of_tones, piano_rolls, race_workloads

AT_LEAST = 3.0
STATES, KEYS = 16, 88
SHAPES = ((8, 60), (64, 128))

WORKLOADS = tuple(
    Workload(
        f"({batch},{steps},{STATES},{KEYS}), {form}",
        parts(piano_rolls(batch, steps, KEYS), STATES),
        AT_LEAST,
        heavy=batch > 8,
    )
    for batch, steps in SHAPES
    for form, parts in (("keys are an event", hmm_of_events), ("keys are a plate", hmm_of_tones))
)

if __name__ == "__main__":
    sys.exit(race_workloads("SVI.step: HMM as a loop, states enumerated", __doc__ or "", WORKLOADS))
