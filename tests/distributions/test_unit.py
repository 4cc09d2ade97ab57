"""`Unit`: the carrier of factors."""

from __future__ import annotations

import pyro.distributions as pyro_dist
import pytest
import torch

import sumprod.distributions as dist


@pytest.mark.parametrize("batch", [(), (3,), (2, 1)], ids=str)
@pytest.mark.parametrize("sample_shape", [(), (4,)], ids=str)
def test_equals_pyro(batch, sample_shape):
    factor = torch.randn(batch)
    ours, theirs = dist.Unit(factor), pyro_dist.Unit(factor)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape) == (batch, (0,))
    value = ours.sample(sample_shape)
    assert value.shape == theirs.sample(sample_shape).shape == ours.shape(sample_shape)
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    wide = ours.expand((5, *batch))
    torch.testing.assert_close(wide.log_prob(wide.sample()), factor.expand(5, *batch))
    assert wide.log_factor.data_ptr() == factor.data_ptr()


def test_has_rsample():
    assert not dist.Unit(torch.tensor(0.0)).has_rsample
    for flag in (True, False):
        d = dist.Unit(torch.tensor(0.0), has_rsample=flag)
        assert d.has_rsample is flag
        assert d.expand((2,)).has_rsample is flag
        assert d().shape == (0,)
        assert d.rsample((3,)).shape == (3, 0)


def test_gradient_reaches_the_factor():
    factor = torch.tensor([1.0, 2.0], requires_grad=True)
    d = dist.Unit(factor)
    (gradient,) = torch.autograd.grad(d.log_prob(d.sample((3,))).sum(), factor)
    assert gradient.tolist() == [3.0, 3.0]


def test_numbers_and_infinite_factors():
    assert dist.Unit(-1.5).log_prob(torch.zeros(0)) == -1.5
    assert dist.Unit(torch.tensor(-torch.inf)).log_prob(torch.zeros(0)) == -torch.inf
    assert dist.Unit(torch.tensor(torch.nan)).log_factor.isnan()


def test_wrappers():
    d = dist.Unit(torch.tensor([1.0, 2.0]))
    assert d.mask(torch.tensor([True, False])).log_prob(d.sample()).tolist() == [1.0, 0.0]
    assert d.to_event(1).log_prob(d.sample()) == 3.0
