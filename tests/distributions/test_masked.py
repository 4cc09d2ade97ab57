"""`MaskedDistribution`: values, gradients and shapes under masks of every kind."""

from __future__ import annotations

import pickle

import pyro.distributions as pyro_dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sumprod.distributions as dist
from tests.distributions.families import CASES, LABELS, draw, make, peer_dtype

pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")

ROW = torch.tensor([True, False, True])


@pytest.mark.parametrize("case", CASES, ids=LABELS)
@pytest.mark.parametrize("mask", [True, False, ROW, ROW.expand(2, 3)], ids=["true", "false", "row", "matrix"])
def test_equals_pyro(case, mask):
    dtype = peer_dtype(case)
    base, peer = make(dist, case, (2, 3), dtype), make(pyro_dist, case, (2, 3), dtype)
    ours, theirs = base.mask(mask), peer.mask(mask)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert ours.has_rsample == theirs.has_rsample
    assert ours.has_enumerate_support == theirs.has_enumerate_support
    value = draw(ours, (4,))
    assert value.shape == ours.shape((4,))
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    torch.testing.assert_close(
        ours.log_prob(value),
        theirs.log_prob(value).to(ours.log_prob(value).dtype),
        rtol=tolerance,
        atol=tolerance,
    )
    event = len(base.batch_shape)
    summed = ours.to_event(event).log_prob(value)
    torch.testing.assert_close(summed, ours.log_prob(value).sum((-2, -1)), rtol=tolerance, atol=tolerance)


@given(st.sampled_from([(), (3,), (2, 3), (2, 1), (4, 1, 1)]), st.sampled_from([(), (3,), (2, 3), (1, 3)]))
def test_shapes_broadcast(mask_shape, batch):
    base = dist.Dirichlet(torch.ones((*batch, 2)))
    d = base.mask(torch.ones(mask_shape, dtype=torch.bool))
    expected = torch.broadcast_shapes(mask_shape, batch)
    assert d.batch_shape == expected
    assert d.event_shape == (2,)
    assert d().shape == (*expected, 2)
    assert d.log_prob(d()).shape == expected
    assert d.expand((5, *expected)).log_prob(d()).shape == (5, *expected)


class TestMissingData:
    """What lies under False is not looked at."""

    @pytest.mark.parametrize("missing", [torch.nan, torch.inf, -torch.inf, -1.0], ids=str)
    @pytest.mark.parametrize(
        "family",
        [
            lambda x: dist.LogNormal(x, 1.0),
            lambda x: dist.Gamma(x.exp(), 1.0),
            lambda x: dist.Beta(x.exp(), 1.0),
            lambda x: dist.Poisson(x.exp()),
            lambda x: dist.Uniform(torch.zeros_like(x), x.exp() + 1),
            lambda x: dist.HalfCauchy(x.exp()),
            lambda x: dist.Bernoulli(logits=x),
            lambda x: dist.Binomial(1, logits=x),
            lambda x: dist.Pareto(torch.full_like(x, 0.5), x.exp()),
            lambda x: dist.TransformedDistribution(dist.Normal(x, 1.0), [dist.transforms.ExpTransform()]),
        ],
        ids=[
            "LogNormal",
            "Gamma",
            "Beta",
            "Poisson",
            "Uniform",
            "HalfCauchy",
            "Bernoulli",
            "Binomial",
            "Pareto",
            "Transformed",
        ],
    )
    def test_no_error_and_no_nan(self, family, missing):
        value = torch.tensor([1.0, missing, 1.0])
        if "Beta" in str(family(torch.zeros(3))):
            value[::2] = 0.5
        x = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
        log_prob = family(x).mask(ROW).log_prob(value)
        assert log_prob[1] == 0
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        kept = x.detach()[ROW].requires_grad_()
        (expected,) = torch.autograd.grad(family(kept).log_prob(value[ROW]).sum(), kept)
        torch.testing.assert_close(gradient[ROW], expected)
        assert gradient[1] == 0

    def test_integer_markers(self):
        value = torch.tensor([0, -1, 2])
        log_prob = dist.Categorical(torch.ones(3, 3)).mask(ROW).log_prob(value)
        torch.testing.assert_close(log_prob, torch.tensor([1 / 3, 1.0, 1 / 3]).log())

    def test_vectors(self):
        value = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [0.0, 0.0]])
        loc = torch.zeros(3, 2, requires_grad=True)
        log_prob = dist.MultivariateNormal(loc, torch.eye(2)).mask(ROW).log_prob(value)
        (gradient,) = torch.autograd.grad(log_prob.sum(), loc)
        assert gradient.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
        rows = dist.Normal(loc, 1.0).to_event(1).mask(ROW)
        assert rows.log_prob(value)[1] == 0
        simplex = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.2, 0.8]])
        assert dist.Dirichlet(torch.ones(3, 2)).mask(ROW).log_prob(simplex).tolist() == [0.0] * 3

    def test_bad_data_that_is_not_masked_is_refused(self):
        with pytest.raises(ValueError, match="within the support"):
            dist.Normal(torch.zeros(3), 1.0).mask(ROW).log_prob(torch.tensor([torch.nan, 0.0, 0.0]))

    def test_value_keeps_its_gradient_where_seen(self):
        value = torch.tensor([1.0, torch.nan, 2.0], requires_grad=True)
        log_prob = dist.Normal(torch.zeros(3), 1.0).mask(ROW).log_prob(value)
        (gradient,) = torch.autograd.grad(log_prob.sum(), value)
        assert gradient.tolist() == [-1.0, 0.0, -2.0]

    def test_enumerated_values_are_not_enlarged(self):
        d = dist.Categorical(torch.ones(2, 3, 4)).mask(ROW)
        support = d.enumerate_support(expand=False)
        assert support.shape == (4, 1, 1)
        log_prob = d.log_prob(support)
        assert log_prob.shape == (4, 2, 3)
        assert (log_prob[..., 1] == 0).all()


def test_false_skips_the_density():
    class Untouchable(dist.Normal):
        def log_prob(self, value):
            raise AssertionError("looked at")

    d = Untouchable(torch.zeros(3), 1.0).mask(False)
    assert d.log_prob(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    parts = d.score_parts(torch.zeros(3))
    assert parts.score_function == 0
    assert parts.log_prob.tolist() == [0.0] * 3
    assert d.log_prob(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


def test_score_parts():
    value = torch.tensor([0.0, torch.nan, 1.0])
    parts = dist.Normal(torch.zeros(3), 1.0).mask(ROW).score_parts(value)
    assert parts.score_function == 0
    assert parts.entropy_term is parts.log_prob
    assert parts.log_prob[1] == 0
    parts = dist.Poisson(torch.ones(3)).mask(ROW).score_parts(torch.tensor([0.0, torch.nan, 1.0]))
    assert parts.entropy_term == 0
    assert parts.log_prob[1] == 0
    # The score of a draw counts under False too: other sites may depend on the draw.
    value = torch.tensor([1.0, 1.0, 0.0])
    probs = torch.full((3,), 0.3)
    parts = dist.Bernoulli(probs).mask(ROW).score_parts(value)
    theirs = pyro_dist.Bernoulli(probs).mask(ROW).score_parts(value)
    torch.testing.assert_close(parts.score_function, dist.Bernoulli(probs).log_prob(value))
    torch.testing.assert_close(parts.score_function, theirs.score_function)
    torch.testing.assert_close(parts.log_prob, theirs.log_prob)
    whole = dist.Poisson(torch.ones(3)).mask(True).score_parts(torch.zeros(3))
    assert whole.score_function is whole.log_prob


def test_pass_through():
    base = dist.Beta(torch.ones(3), 2.0)
    d = base.mask(ROW)
    assert d.support is base.support
    torch.testing.assert_close(d.mean, base.mean)
    torch.testing.assert_close(d.variance, base.variance)
    twin = pickle.loads(pickle.dumps(d))
    x = torch.full((3,), 0.3)
    torch.testing.assert_close(twin.log_prob(x), d.log_prob(x))
    assert repr(d) == f"MaskedDistribution({base!r}, mask: (3,))"
    assert dist.Bernoulli(torch.full((3,), 0.5)).mask(ROW).enumerate_support(expand=False).shape == (2, 1)


def test_bytes_count_as_a_mask():
    log_prob = dist.Normal(torch.zeros(3), 1.0).mask(ROW.byte()).log_prob(torch.zeros(3))
    assert log_prob[1] == 0
    assert log_prob[0] != 0


@pytest.mark.parametrize("mask", [1, 0.0, None, torch.ones(3), [True]], ids=str)
def test_refuses_what_is_no_mask(mask):
    with pytest.raises(ValueError, match=r"Expected mask to be True, False or a tensor of torch\.bool"):
        dist.Normal(torch.zeros(3), 1.0).mask(mask)


def test_refuses_a_mask_that_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shape mismatch: .* \(2,\) vs \(3,\)"):
        dist.Normal(torch.zeros(3), 1.0).mask(torch.ones(2, dtype=torch.bool))
