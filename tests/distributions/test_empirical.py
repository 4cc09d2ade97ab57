"""`Empirical`: shapes, weights, draws, densities, moments and refusals."""

from __future__ import annotations

import math
import pickle

import pyro.distributions as pyro_dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sumprod.distributions as dist
from tests.distributions.family_checks import assert_counts_follow

sizes = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@given(batch=sizes, count=st.integers(1, 4), event=sizes, sample_shape=sizes)
def test_equals_pyro(batch, count, event, sample_shape):
    generator = torch.Generator().manual_seed(len(batch) + 10 * count + 100 * len(event))
    # Few distinct values, so that samples coincide.
    samples = torch.randint(0, 2, (*batch, count, *event), generator=generator).double()
    log_weights = torch.randn((*batch, count), generator=generator, dtype=torch.float64)
    ours, theirs = dist.Empirical(samples, log_weights), pyro_dist.Empirical(samples, log_weights)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape) == (batch, event)
    assert ours.sample_size == theirs.sample_size
    assert ours.log_weights is log_weights
    assert ours.has_enumerate_support
    assert not ours.has_rsample
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    torch.manual_seed(5)
    value = ours.sample(sample_shape)
    torch.manual_seed(5)
    torch.testing.assert_close(value, theirs.sample(sample_shape))
    value = value[(0,) * len(sample_shape)]
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.enumerate_support(), theirs.enumerate_support())
    torch.testing.assert_close(ours.enumerate_support(expand=False), samples)


def test_density_by_hand():
    samples = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [1.0, 4.0]])
    d = dist.Empirical(samples, torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    assert d.log_prob(torch.tensor([1.0, 2.0])).exp().item() == pytest.approx(0.4)
    assert d.log_prob(torch.tensor([1.0, 3.0])) == -torch.inf
    torch.testing.assert_close(d.mean, torch.tensor([1.4, 3.2]))
    exact = torch.tensor([0.8 + 0.2 * 9 - 1.4**2, 0.4 * 4 + 0.6 * 16 - 3.2**2])
    torch.testing.assert_close(d.variance, exact)


def test_weights_are_normalised_and_shift_free():
    samples = torch.arange(3.0)
    weights = torch.tensor([1.0, 2.0, 1.0]).log()
    for shift in (0.0, 800.0, -800.0):
        d = dist.Empirical(samples.double(), weights.double() + shift)
        torch.testing.assert_close(d.mean, torch.tensor(1.0, dtype=torch.float64))
        torch.testing.assert_close(
            d.log_prob(torch.tensor(1.0, dtype=torch.float64)), torch.tensor(0.5, dtype=torch.float64).log()
        )


def test_draws_follow_the_weights():
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    d = dist.Empirical(torch.arange(6.0).reshape(2, 3), probabilities.log())
    draws = d.sample((5000,))
    assert draws.shape == (5000, 2)
    assert_counts_follow(draws[:, 0], probabilities[0])
    assert_counts_follow(draws[:, 1] - 3, probabilities[1])


def test_a_sample_without_weight_may_be_anything():
    d = dist.Empirical(torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([0.0, -torch.inf, 0.0]))
    assert d.mean == 2.0
    assert d.variance == 1.0
    assert not d.sample((100,)).isnan().any()
    assert d.log_prob(torch.tensor(1.0)).exp() == 0.5


def test_gradients_reach_the_weights():
    weights = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    samples = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)

    def moments(w):
        d = dist.Empirical(samples, w)
        return d.mean, d.variance, d.log_prob(samples[0])

    assert torch.autograd.gradcheck(moments, weights)
    (gradient,) = torch.autograd.grad(
        dist.Empirical(samples, weights).log_prob(samples[0] + 5).clamp(min=-1e3), weights
    )
    assert gradient.tolist() == [0.0, 0.0, 0.0]


def test_gradients_reach_the_samples():
    samples = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: dist.Empirical(s, weights).variance, samples)


def test_values_with_sample_dims():
    samples, weights = torch.arange(4.0), torch.zeros(4)
    values = torch.tensor([[0.0, 1.0], [7.0, 3.0]])
    with pytest.raises(ValueError, match=r"``value.shape`` must be torch.Size\(\[\]\)"):
        dist.Empirical(samples, weights).log_prob(values)
    log_prob = dist.Empirical(samples, weights, validate_args=False).log_prob(values)
    assert log_prob.exp().tolist() == [[0.25, 0.25], [0.0, 0.25]]
    events = dist.Empirical(samples.reshape(2, 1, 2), torch.zeros(2, 1), validate_args=False)
    assert events.log_prob(torch.zeros(5, 2, 2)).shape == (5, 2)


def test_expand():
    d = dist.Empirical(torch.randn(1, 4, 2), torch.zeros(1, 4))
    wide = d.expand((3, 2))
    assert type(wide) is dist.Empirical
    assert (wide.batch_shape, wide.event_shape) == ((3, 2), (2,))
    assert wide.sample((5,)).shape == (5, 3, 2, 2)
    assert wide.enumerate_support().data_ptr() == d.enumerate_support().data_ptr()
    torch.testing.assert_close(wide.mean, d.mean.expand(3, 2, 2))
    assert wide.log_prob(wide.sample()).shape == (3, 2)


def test_pickles():
    d = dist.Empirical(torch.arange(3.0), torch.zeros(3))
    twin = pickle.loads(pickle.dumps(d))
    assert twin.log_prob(torch.tensor(1.0)) == d.log_prob(torch.tensor(1.0))
    assert repr(d) == "Empirical(3 samples, batch_shape: (), event_shape: ())"


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool], ids=str
)
def test_integer_samples_have_no_moments(dtype):
    d = dist.Empirical(torch.tensor([0, 1, 1], dtype=dtype), torch.zeros(3))
    for moment in ("mean", "variance"):
        with pytest.raises(
            ValueError, match=f"{moment.capitalize()} for discrete empirical distribution undefined"
        ):
            getattr(d, moment)
    assert d.sample((4,)).dtype == dtype
    torch.testing.assert_close(d.log_prob(torch.tensor(1, dtype=dtype)), torch.tensor(2 / 3).log())


@pytest.mark.parametrize(
    ("samples", "weights"),
    [((2, 3, 4), (3, 2)), ((2, 3, 4), (2, 3, 4, 1)), ((), (1,)), ((3,), (2,))],
    ids=str,
)
def test_refuses_weights_of_other_shapes(samples, weights):
    with pytest.raises(ValueError, match="must match the leftmost shape"):
        dist.Empirical(torch.zeros(samples), torch.zeros(weights))


def test_refuses_weights_without_a_sample():
    with pytest.raises(ValueError, match="at least one sample"):
        dist.Empirical(torch.tensor(1.0), torch.tensor(0.0))
    with pytest.raises(ValueError, match="at least one sample"):
        dist.Empirical(torch.zeros(2, 0), torch.zeros(2, 0))


def test_refuses_weights_that_are_none():
    nothing = torch.full((2,), -torch.inf)
    with pytest.raises(
        ValueError, match="all log_weights of Empirical are -inf, so no sample has any weight"
    ):
        dist.Empirical(torch.zeros(2), nothing)
    with pytest.raises(ValueError, match=r"are -inf \(first in batch element \(1,\)\)"):
        dist.Empirical(torch.zeros(2, 2), torch.stack((torch.zeros(2), nothing)))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"must not be NaN or \+inf"):
            dist.Empirical(torch.zeros(2), torch.tensor([0.0, bad]))
    unchecked = dist.Empirical(torch.zeros(2), nothing, validate_args=False)
    assert unchecked.log_weights is nothing
