"""Many copies of a short chain in one program, and its posterior, to test draws by chi-square."""

from __future__ import annotations

import itertools

import scipy.stats
import torch

import sumprod
from sumprod.distributions import Categorical

PARALLEL = {"enumerate": "parallel"}
INITIAL = torch.tensor([0.3, 0.7])
TRANSITION = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
EMISSION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
DATA = (0, 1, 1)
COPIES = 20_000


def chain(copies=COPIES, data=DATA):
    """Independent copies of a chain, so that one run gives many draws."""
    z, values = None, []
    with sumprod.plate("copies", copies):
        for t in sumprod.markov(range(len(data))):
            z = sumprod.sample(f"z{t}", Categorical(INITIAL if z is None else TRANSITION[z]), infer=PARALLEL)
            sumprod.sample(f"x{t}", Categorical(EMISSION[z]), obs=torch.tensor(data[t]))
            values.append(z)
    return values


def weights(fixed=()):
    """p(z0, z1, z2, data) over all assignments, the first ones of `fixed` being given."""
    return torch.tensor(
        [
            (
                INITIAL[a]
                * EMISSION[a, DATA[0]]
                * TRANSITION[a, b]
                * EMISSION[b, DATA[1]]
                * TRANSITION[b, c]
                * EMISSION[c, DATA[2]]
            ).item()
            if (a, b, c)[: len(fixed)] == tuple(fixed)
            else 0.0
            for a, b, c in itertools.product(range(2), repeat=3)
        ],
        dtype=torch.float64,
    )


def p_value(counts, expected):
    """Of a chi-square test of counts against weights; -inf if something impossible was drawn."""
    possible = expected > 0
    if counts[~possible].any():
        return -float("inf")
    counts, expected = counts[possible], expected[possible]
    return scipy.stats.chisquare(counts.numpy(), (expected / expected.sum() * counts.sum()).numpy()).pvalue


def counts_of(values):
    return torch.bincount(values[0] * 4 + values[1] * 2 + values[2], minlength=8)
