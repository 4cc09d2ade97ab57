"""VonMises: density, draws, and its older module name."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special, stats

from sumprod import distributions
from sumprod.distributions.von_mises import VonMises
from tests.distributions.family_checks import assert_draws_follow


def test_one_class_under_both_names() -> None:
    assert VonMises is distributions.VonMises


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 40.0])
def test_density_and_draws(concentration: float) -> None:
    loc = 0.5
    law = VonMises(torch.tensor(loc, dtype=torch.float64), torch.tensor(concentration, dtype=torch.float64))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    # torch's Bessel function is a polynomial good to about 1e-7.
    expected = concentration * (torch.cos(x - loc) - 1) - math.log(2 * math.pi * special.i0e(concentration))
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    draws = law.sample((5000,))
    centred = (draws - loc + math.pi) % (2 * math.pi) - math.pi
    assert_draws_follow(centred, stats.vonmises(concentration).cdf)
