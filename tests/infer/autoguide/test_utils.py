"""Helpers of the automatic guides."""

from __future__ import annotations

import math

import pytest
import torch

import sumprod
from sumprod.distributions import Bernoulli, Normal
from sumprod.infer.autoguide import mean_field_entropy
from sumprod.infer.autoguide.utils import helpful_support_errors, periodic_repeat


def program() -> None:
    with sumprod.plate("p", 3):
        sumprod.sample("x", Normal(0.0, 1.0))
        sumprod.sample("y", Normal(torch.zeros(3, 2), 2.0).to_event(1))
    sumprod.sample("z", Normal(0.0, 1.0), obs=torch.tensor(1.0))
    sumprod.sample("k", Bernoulli(0.5))


def test_entropies_add_up_over_sites_but_not_over_plates() -> None:
    normal = 0.5 * math.log(2 * math.pi * math.e)
    expected = 4 * normal + 2 * math.log(2.0) + math.log(2.0)
    torch.testing.assert_close(mean_field_entropy(program, ()), torch.full((3,), expected))
    torch.testing.assert_close(mean_field_entropy(program, (), ["x"]), torch.full((3,), normal))
    assert mean_field_entropy(program, [], whitelist=["k"]).item() == pytest.approx(math.log(2.0))


def test_repeats_are_cut_to_size() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert periodic_repeat(x, 5, -1).tolist() == [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5]]
    assert periodic_repeat(x, 3, 0).tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 3]]


def test_other_errors_pass() -> None:
    site = {"name": "x", "fn": Normal(0.0, 1.0), "cond_indep_stack": ()}
    with pytest.raises(NotImplementedError, match=r"^something else$"), helpful_support_errors(site):
        raise NotImplementedError("something else")
