"""`enumerate_support` of every family: shapes, values, total probability, and refusals."""

from __future__ import annotations

import pyro.distributions as pyro_dist
import pytest
import torch

import sumprod.distributions as dist
from tests.distributions.families import CASES, make

DISCRETE = [c for c in CASES if getattr(dist, c.name).has_enumerate_support is True]
OTHERS = [c for c in CASES if getattr(dist, c.name).has_enumerate_support is False]
FINITE = [c for c in DISCRETE if c.name != "Binomial"]


def test_who_is_enumerable():
    assert {c.name for c in DISCRETE} == {
        "Bernoulli",
        "Binomial",
        "Categorical",
        "OneHotCategorical",
        "OneHotCategoricalStraightThrough",
    }


@pytest.mark.parametrize("case", DISCRETE, ids=[c.label for c in DISCRETE])
@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("expand", [True, False])
def test_equals_pyro(case, batch, expand):
    ours, theirs = make(dist, case, batch), make(pyro_dist, case, batch)
    support = ours.enumerate_support(expand=expand)
    torch.testing.assert_close(support, theirs.enumerate_support(expand=expand))
    count = support.shape[0]
    ones = batch if expand else (1,) * len(batch)
    assert support.shape == (count, *ones, *ours.event_shape)
    log_prob = ours.log_prob(support)
    assert log_prob.shape == (count, *batch)
    torch.testing.assert_close(log_prob, theirs.log_prob(support), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(batch, dtype=torch.float64))


@pytest.mark.parametrize("case", DISCRETE, ids=[c.label for c in DISCRETE])
def test_expand_default_is_true(case):
    d = make(dist, case, (3,))
    assert d.enumerate_support().shape == d.enumerate_support(expand=True).shape


@pytest.mark.parametrize("case", DISCRETE, ids=[c.label for c in DISCRETE])
def test_under_wrappers(case):
    d = make(dist, case, (1, 3))
    mask = torch.tensor([True, False, True])
    for wrapped in (d.mask(mask), dist.ExpandedDistribution(d, (2, 3)), d.to_event(0), d.expand((2, 3))):
        assert wrapped.has_enumerate_support
        for expand in (True, False):
            support = wrapped.enumerate_support(expand=expand)
            assert wrapped.log_prob(support).shape[1:] == wrapped.batch_shape
            dims = wrapped.batch_shape if expand else (1,) * len(wrapped.batch_shape)
            assert support.shape[1:] == (*dims, *wrapped.event_shape)
    assert not d.to_event(1).has_enumerate_support


@pytest.mark.parametrize("case", OTHERS, ids=[c.label for c in OTHERS])
def test_others_refuse(case):
    with pytest.raises(NotImplementedError):
        make(dist, case, ()).enumerate_support()


def test_supports_that_differ_within_the_batch():
    counts = torch.tensor([2.0, 3.0])
    with pytest.raises(NotImplementedError, match="Inhomogeneous total count"):
        dist.Binomial(counts, torch.tensor([0.5, 0.5])).enumerate_support()
    same = dist.Binomial(torch.tensor([2.0, 2.0]), torch.tensor([0.5, 0.5]))
    assert same.enumerate_support(expand=False).flatten().tolist() == [0.0, 1.0, 2.0]
