"""`Categorical`: zero probabilities, the mark on its support, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributions as td

import sumprod
import sumprod.distributions as dist
from sumprod import handlers, settings
from sumprod.distributions._support import is_whole_support, mark_as_support


def test_trap_49_zero_probabilities_are_clamped():
    d = dist.Categorical(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(d.log_prob(torch.tensor(0)), torch.tensor(-15.9424), rtol=1e-5, atol=0)


def test_exact_zeros():
    probs = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]], requires_grad=True)
    with settings.context(exact_zeros=True):
        d = dist.Categorical(probs)
        plain = dist.Categorical(logits=torch.tensor([0.0, -torch.inf]))
    assert d.logits.isneginf().tolist() == [[True, False, False], [False, True, True]]
    assert d.expand((4, 2)).log_prob(torch.zeros(4, 2)).isneginf().tolist() == [[True, False]] * 4
    assert d.enumerate_support(expand=False).shape == (3, 1)
    assert plain.log_prob(torch.tensor(1)) == -torch.inf
    loss = d.log_prob(torch.tensor([[1, 0], [0, 1]])).exp().sum()
    (gradient,) = torch.autograd.grad(loss, probs)
    assert gradient.isfinite().all()
    assert gradient[0, 1] != 0
    # Decided when constructed: what is evaluated later does not change.
    assert dist.Categorical(probs.detach()).logits.isfinite().all()
    with settings.context(exact_zeros=True):
        assert dist.Categorical(probs.detach(), validate_args=False).logits.isneginf().any()
    assert d.entropy().isfinite().all()


def test_marked_support_skips_the_lookup():
    logits = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    d = dist.Categorical(logits=logits)
    support = d.enumerate_support(expand=False)
    assert support.shape == (5, 1, 1)
    expected = d.log_prob(support.clone())
    fast = d.log_prob(support)
    assert fast.shape == (5, 3, 2)
    torch.testing.assert_close(fast, expected, rtol=0, atol=0)
    assert "Gather" not in str(fast.grad_fn)
    assert "Squeeze" in str(expected.grad_fn)
    # A dim further left, as enumeration under plates asks for.
    moved = mark_as_support(support.reshape(5, 1, 1, 1))
    torch.testing.assert_close(d.log_prob(moved), d.log_prob(moved.clone()), rtol=0, atol=0)
    narrow = mark_as_support(torch.arange(5))
    torch.testing.assert_close(
        dist.Categorical(logits=logits[0, 0]).log_prob(narrow), logits[0, 0].log_softmax(-1)
    )
    for other in (support.clone(), support + 0, support[:], support.reshape(5, 1), copy.copy(support)):
        assert not is_whole_support(other, 5)
    assert not is_whole_support(copy.deepcopy(support), 5)
    assert not is_whole_support(pickle.loads(pickle.dumps(support)), 5)
    assert not is_whole_support(support, 4)
    support[0] = 1
    assert not is_whole_support(support, 5)
    torch.testing.assert_close(d.log_prob(support)[0], d.log_prob(support)[1])


def test_marked_support_of_fewer_values_is_looked_up():
    small, large = dist.Categorical(torch.ones(3, 2)), dist.Categorical(torch.ones(3, 4))
    support = small.enumerate_support(expand=False)
    assert large.log_prob(support).shape == (2, 3)


def test_large_supports_and_unnormalised_weights():
    weights = torch.rand(100_000)
    d = dist.Categorical(weights)
    torch.testing.assert_close(d.probs.sum(), torch.tensor(1.0))
    assert d.log_prob(d.sample((5,))).shape == (5,)


@pytest.mark.parametrize("rows", [[[0.0, 0.0]], [[0.5, 0.5], [0.0, 0.0]], [[torch.inf, 1.0]], [[-1.0, 2.0]]])
def test_refuses_weights_that_cannot_be_normalised(rows):
    with pytest.raises(ValueError, match=r"Expected parameter probs .* Simplex"):
        dist.Categorical(torch.tensor(rows))


def test_integer_logits():
    logits = torch.tensor([1, 2, 3])
    expected = td.Categorical(logits=logits).log_prob(torch.tensor(1))
    torch.testing.assert_close(dist.Categorical(logits=logits).log_prob(torch.tensor(1)), expected)


def test_needs_one_of_both():
    for arguments in ({}, {"probs": torch.ones(2), "logits": torch.ones(2)}):
        for family in (dist.Categorical, dist.Bernoulli):
            with pytest.raises(ValueError, match="must be specified, but not both"):
                family(**arguments)
    with pytest.raises(ValueError, match="`logits` parameter must be at least one-dimensional"):
        dist.Categorical(logits=torch.tensor(1.0))
    with pytest.raises(ValueError, match="`probs` parameter must be at least one-dimensional"):
        dist.Categorical(torch.tensor(1.0))
    with pytest.raises(ValueError, match="`concentration` parameter must be at least one-dimensional"):
        dist.Dirichlet(torch.tensor(1.0))


def test_weights_are_normalised_when_first_used_and_before_expansion():
    weights = torch.tensor([1.0, 2.0, 5.0], requires_grad=True)
    d = dist.Categorical(weights)
    wide = d.expand((1, 4)).expand((6, 4))
    assert "probs" not in vars(d)
    assert "logits" not in vars(wide)
    torch.testing.assert_close(wide.logits, (weights / 8).log().expand(6, 4, 3))
    assert wide.logits._base.shape == (3,)
    assert wide.probs.shape == (6, 4, 3)
    assert wide._param is wide.probs
    assert "probs: torch.Size([3])" in repr(dist.Categorical(weights))
    again = pickle.loads(pickle.dumps(dist.Categorical(weights.detach()).expand((2,))))
    torch.testing.assert_close(again.probs, weights.detach().expand(2, 3) / 8)
    (gradient,) = torch.autograd.grad(wide.log_prob(torch.tensor(2)).sum(), weights)
    torch.testing.assert_close(gradient, 24 * torch.tensor([-1 / 8, -1 / 8, 1 / 5 - 1 / 8]))
    with pytest.raises(ValueError, match="expanded"):
        d.expand((2,)).expand((3,))


def test_an_observed_number_has_the_dtype_of_the_weights():
    with handlers.trace() as recorder:
        sumprod.sample("x", dist.Categorical(torch.ones(3, dtype=torch.float64)), obs=2)
    assert recorder.trace.nodes["x"]["value"].dtype == torch.float64
