"""`ExpandedDistribution`: draws, densities and shapes of a distribution repeated along batch dims."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import sumprod.distributions as dist
from tests.distributions.families import CASES, LABELS, draw, make

pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")

SHAPES = [((), (3,)), ((3,), (3,)), ((1,), (3,)), ((1, 3), (2, 3)), ((2, 1), (4, 2, 3)), ((1, 1), (5, 2, 3))]


@pytest.mark.parametrize("case", CASES, ids=LABELS)
@pytest.mark.parametrize(("old", "new"), SHAPES, ids=str)
def test_equals_the_family_expanded_by_itself(case, old, new):
    base = make(dist, case, old)
    wide, expected = dist.ExpandedDistribution(base, new), base.expand(new)
    assert (wide.batch_shape, wide.event_shape) == (expected.batch_shape, expected.event_shape)
    assert wide.has_rsample == base.has_rsample
    assert wide.has_enumerate_support == base.has_enumerate_support
    value = draw(wide, (2,))
    assert value.shape == wide.shape((2,)) == expected.shape((2,))
    torch.testing.assert_close(wide.log_prob(value), expected.log_prob(value), rtol=1e-11, atol=1e-11)
    one = draw(base)
    assert wide.log_prob(one).shape == new
    torch.testing.assert_close(wide.log_prob(one), expected.log_prob(one), rtol=1e-11, atol=1e-11)
    if wide.has_rsample:
        assert wide.rsample().shape == expected.rsample().shape
    for moment in ("mean", "variance"):
        try:
            wanted = getattr(expected, moment)
        except NotImplementedError:
            continue
        torch.testing.assert_close(getattr(wide, moment), wanted, equal_nan=True)


sizes = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)


@given(
    new=sizes, shrink=st.lists(st.booleans(), min_size=3, max_size=3), left=st.integers(0, 3), sample=sizes
)
def test_draws_carry_the_right_parameters(new, shrink, left, sample):
    old = tuple(1 if s else n for n, s in zip(new, shrink, strict=False))[left:]
    place = torch.arange(torch.Size(old).numel(), dtype=torch.float64).reshape(old).unsqueeze(-1)
    base = dist.Normal(place, 1e-3).to_event(1)
    wide = dist.ExpandedDistribution(base, new)
    torch.manual_seed(0)
    value = wide.sample(sample)
    assert value.shape == (*sample, *new, 1)
    torch.testing.assert_close(value, place.expand(value.shape), atol=0.02, rtol=0)
    assert len(value.unique()) == value.numel()  # every repetition is drawn anew


def test_repetitions_are_independent():
    """Correlation of repetitions over 20,000 draws; fails with probability 1e-5 for another seed."""
    torch.manual_seed(0)
    wide = dist.ExpandedDistribution(dist.Normal(torch.zeros(1, 2), 1.0), (3, 2))
    x = wide.sample((20_000,)).flatten(1)
    correlation = torch.corrcoef(x.T) - torch.eye(6)
    assert correlation.abs().max() < stats.norm.isf(1e-5 / 30) / 20_000**0.5


def test_gradients_reach_the_base():
    loc = torch.zeros(1, 2, requires_grad=True)
    wide = dist.ExpandedDistribution(dist.Normal(loc, 1.0), (3, 2))
    (gradient,) = torch.autograd.grad(wide().sum() + wide.log_prob(torch.ones(3, 2)).sum(), loc)
    assert gradient.tolist() == [[6.0, 6.0]]


def test_expanding_again():
    base = dist.Normal(torch.zeros(2, 1), 1.0)
    twice = dist.ExpandedDistribution(base, (2, 3)).expand((4, 2, 3))
    assert twice.base_dist is base
    assert twice.batch_shape == (4, 2, 3)
    assert twice().shape == (4, 2, 3)
    first = dist.ExpandedDistribution(base, (2, 3))
    assert first.expand((4, 2, 3)) is not first
    assert first.batch_shape == (2, 3)
    with pytest.raises(ValueError, match=r"a batch of shape \(2, 3\) cannot be expanded to \(2, 1\)"):
        first.expand((2, 1))


@pytest.mark.parametrize("new", [(), (3,), (2, 2), (2, 3, 1)], ids=str)
def test_refuses_shapes_that_do_not_fit(new):
    with pytest.raises(ValueError, match=r"a batch of shape \(2, 3\) cannot be expanded to"):
        dist.ExpandedDistribution(dist.Normal(torch.zeros(2, 3), 1.0), new)


def test_score_parts():
    wide = dist.ExpandedDistribution(dist.Normal(torch.zeros(1, 2), 1.0), (3, 2))
    parts = wide.score_parts(torch.zeros(1, 2))
    assert parts.log_prob.shape == (3, 2)
    assert parts.score_function == 0
    assert parts.entropy_term is parts.log_prob
    parts = dist.ExpandedDistribution(dist.Poisson(torch.ones(2)), (3, 2)).score_parts(torch.zeros(2))
    assert parts.score_function.shape == (3, 2)
    assert parts.entropy_term == 0


def test_enumerate_support():
    wide = dist.ExpandedDistribution(dist.OneHotCategorical(torch.ones(2, 1, 4)), (5, 2, 3))
    assert wide.enumerate_support(expand=False).shape == (4, 1, 1, 1, 4)
    assert wide.enumerate_support().shape == (4, 5, 2, 3, 4)
    assert wide.log_prob(wide.enumerate_support(expand=False)).shape == (4, 5, 2, 3)


def test_mask_and_to_event_and_pickle():
    wide = dist.ExpandedDistribution(dist.Normal(torch.zeros(2), 1.0), (3, 2))
    x = torch.zeros(3, 2)
    assert wide.to_event(1).log_prob(x).shape == (3,)
    assert wide.mask(torch.tensor([True, False])).log_prob(x)[0, 1] == 0
    twin = pickle.loads(pickle.dumps(wide))
    torch.testing.assert_close(twin.log_prob(x), wide.log_prob(x))
    assert repr(wide) == f"ExpandedDistribution({wide.base_dist!r}, batch_shape: (3, 2))"
    assert wide.support is dist.constraints.real
