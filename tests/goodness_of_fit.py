"""Pearson's test of draws against exact probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

# Every seed is fixed, so a test passes always or never; a correct sampler would be rejected by a newly
# chosen seed with this probability per test of a distribution.
FAILURE_RATE = 1e-4


def chi_square(observed: Floats, probabilities: Floats) -> float:
    """p-value of counts; cells that expect fewer than 5 are merged, impossible ones must be empty."""
    assert (observed[probabilities == 0] == 0).all(), "drew an impossible value"
    expected = probabilities * observed.sum()
    rare = expected < 5
    counts = np.append(observed[~rare], observed[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    keep = wanted > 0
    assert keep.sum() > 1, "nothing to test"
    return float(stats.chisquare(counts[keep], wanted[keep] * counts.sum() / wanted[keep].sum()).pvalue)
