"""`Delta`: shapes, densities, gradients and what it refuses."""

from __future__ import annotations

import pickle

import pyro.distributions as pyro_dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sumprod.distributions as dist

sizes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@given(sizes, st.integers(0, 3), sizes, st.sampled_from([0.0, -1.5]))
def test_equals_pyro(shape, event_dim, sample_shape, log_density):
    if event_dim > len(shape):
        return
    v = torch.randn(shape)
    ours = dist.Delta(v, log_density, event_dim)
    theirs = pyro_dist.Delta(v, log_density, event_dim)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert ours.event_dim == event_dim
    torch.testing.assert_close(ours.log_density, theirs.log_density)
    value = ours.sample(sample_shape)
    assert value.shape == theirs.sample(sample_shape).shape
    other = value + (torch.rand(value.shape) < 0.3)
    for x in (value, other):
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    wide, wanted = ours.expand_by(sample_shape), theirs.expand_by(sample_shape)
    assert (wide.batch_shape, wide.event_shape) == (wanted.batch_shape, wanted.event_shape)
    torch.testing.assert_close(wide.log_prob(other), wanted.log_prob(other))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8], ids=str
)
def test_dtypes(dtype):
    v = torch.tensor([0, 1], dtype=dtype)
    d = dist.Delta(v)
    expected = dtype if dtype.is_floating_point else torch.float32
    assert d.sample().dtype == dtype
    for value in (v, v.flip(0), torch.tensor([[0, 1], [1, 1]], dtype=dtype)):
        log_prob = d.log_prob(value)
        assert log_prob.dtype == d.log_density.dtype == expected
        assert log_prob.tolist() == torch.where(value == v, 0.0, -torch.inf).tolist()


def test_values_of_other_dtypes_are_compared():
    assert dist.Delta(torch.tensor(1.0)).log_prob(torch.tensor(1)) == 0
    assert dist.Delta(torch.tensor(1)).log_prob(torch.tensor(1.0)) == 0
    assert dist.Delta(torch.tensor(1)).log_prob(1.5) == -torch.inf
    assert dist.Delta(2.0).log_prob(torch.tensor([2.0, 3.0])).tolist() == [0.0, -torch.inf]


def test_broadcast_values():
    d = dist.Delta(torch.zeros(3, 2), event_dim=1)
    assert d.log_prob(torch.zeros(2)).shape == (3,)
    assert d.log_prob(torch.zeros(5, 1, 2)).shape == (5, 3)
    assert dist.Delta(torch.zeros(3, 1)).log_prob(torch.tensor([0.0, 1.0])).shape == (3, 2)


def test_nan_equals_nothing():
    assert dist.Delta(torch.tensor(torch.nan)).log_prob(torch.tensor(torch.nan)) == -torch.inf
    v = torch.tensor([1.0, torch.nan])
    assert dist.Delta(v).log_prob(v).tolist() == [0.0, -torch.inf]
    assert dist.Delta(torch.zeros(2)).log_prob(torch.tensor([torch.nan, 0.0])).tolist() == [-torch.inf, 0.0]


def test_rsample_carries_gradients_to_the_point():
    v = torch.tensor([1.0, 2.0], requires_grad=True)
    d = dist.Delta(v, event_dim=1)
    assert d.has_rsample
    (gradient,) = torch.autograd.grad((d.rsample((3,)) * torch.arange(6.0).reshape(3, 2)).sum(), v)
    assert gradient.tolist() == [6.0, 9.0]
    assert not d.sample().requires_grad
    assert not d.has_rsample_(False)().requires_grad
    assert d.expand((2,)).has_rsample is False


def test_log_density_is_differentiable_and_kept():
    density = torch.tensor([-1.0, -2.0], requires_grad=True)
    d = dist.Delta(torch.zeros(2), log_density=density)
    assert not d.has_zero_log_density
    assert d.log_density is density
    log_prob = d.expand((3, 2)).log_prob(torch.zeros(2))
    assert log_prob.shape == (3, 2)
    (gradient,) = torch.autograd.grad(log_prob.sum(), density)
    assert gradient.tolist() == [3.0, 3.0]
    assert dist.Delta(torch.zeros(2, 3), log_density=torch.tensor(-1.0), event_dim=1).log_density.shape == (
        2,
    )


def test_wraps_and_pickles():
    d = dist.Delta(torch.zeros(3, 2), log_density=1.0)
    assert d.to_event(1).log_prob(torch.zeros(3, 2)).tolist() == [2.0] * 3
    twin = pickle.loads(pickle.dumps(d))
    assert torch.equal(twin.log_prob(torch.zeros(3, 2)), d.log_prob(torch.zeros(3, 2)))
    assert repr(d) == "Delta(v: (3, 2), log_density: 1.0, event_dim: 0)"
    assert d.support is dist.constraints.real
    assert dist.Delta(torch.zeros(2), event_dim=1).support.event_dim == 1


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"Expected event_dim <= v.dim\(\), actual 2 vs 1"):
        dist.Delta(torch.zeros(2), event_dim=2)
    with pytest.raises(ValueError, match="actual -1 vs 1"):
        dist.Delta(torch.zeros(2), event_dim=-1)
    with pytest.raises(
        ValueError, match=r"log_density to broadcast to the batch shape \(2,\) .* got shape \(3,\)"
    ):
        dist.Delta(torch.zeros(2), log_density=torch.zeros(3))
    for nan in (torch.nan, torch.tensor(torch.nan)):
        with pytest.raises(ValueError, match="Expected parameter log_density"):
            dist.Delta(torch.zeros(()), log_density=nan)
        dist.Delta(torch.zeros(()), log_density=nan, validate_args=False)
    with pytest.raises(RuntimeError, match="must match the size"):
        dist.Delta(torch.zeros(2)).log_prob(torch.zeros(3))


def test_inputs_are_not_changed():
    v = torch.zeros(2)
    d = dist.Delta(v)
    d.rsample().requires_grad_()
    assert not v.requires_grad
    assert d.rsample() is not v
