"""Straight-through draws: discrete values, relaxed densities and gradients."""

from __future__ import annotations

import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

from sumprod.distributions import (
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategorical,
    RelaxedOneHotCategoricalStraightThrough,
)
from tests.goodness_of_fit import FAILURE_RATE, chi_square

TEMPERATURE = torch.tensor(0.4, dtype=torch.float64)
LOGITS = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.1, -0.2]], dtype=torch.float64)
PAIRS = [
    (RelaxedBernoulliStraightThrough, RelaxedBernoulli),
    (RelaxedOneHotCategoricalStraightThrough, RelaxedOneHotCategorical),
]


@pytest.mark.parametrize(("hard", "soft"), PAIRS)
def test_a_draw_is_the_relaxed_one_quantised(hard: type, soft: type) -> None:
    torch.manual_seed(3)
    draw = hard(TEMPERATURE, logits=LOGITS).rsample((50,))
    torch.manual_seed(3)
    relaxed = soft(TEMPERATURE, logits=LOGITS).rsample((50,))
    assert draw.shape == relaxed.shape
    assert ((draw == 0) | (draw == 1)).all()
    if hard is RelaxedBernoulliStraightThrough:
        assert torch.equal(draw, relaxed.round())
    else:
        assert (draw.sum(-1) == 1).all()
        assert torch.equal(draw.argmax(-1), relaxed.argmax(-1))
    ours, theirs = hard(TEMPERATURE, logits=LOGITS), soft(TEMPERATURE, logits=LOGITS)
    assert torch.equal(ours.log_prob(draw), theirs.log_prob(relaxed))
    assert torch.equal(ours.log_prob(relaxed), theirs.log_prob(relaxed))


@pytest.mark.parametrize(("hard", "soft"), PAIRS)
def test_gradients_are_those_of_the_relaxed_draw(hard: type, soft: type) -> None:
    weights = torch.randn(20, *LOGITS.shape, dtype=torch.float64)
    grads = []
    for family in (hard, soft):
        logits, temperature = LOGITS.clone().requires_grad_(), TEMPERATURE.clone().requires_grad_()
        torch.manual_seed(5)
        draw = family(temperature, logits=logits).rsample((20,))
        (weights * draw).sum().backward()
        grads.append((logits.grad, temperature.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)
        assert (ours != 0).all()


@pytest.mark.parametrize(("hard", "soft"), PAIRS)
def test_samples_are_discrete_and_detached(hard: type, soft: type) -> None:
    dist = hard(TEMPERATURE, logits=LOGITS.clone().requires_grad_())
    assert dist.has_rsample
    draw = dist.sample((5,))
    assert not draw.requires_grad
    assert ((draw == 0) | (draw == 1)).all()
    assert dist.log_prob(draw).isfinite().all()
    assert dist().requires_grad
    wide = dist.expand((4, 2, 3) if hard is RelaxedBernoulliStraightThrough else (4, 2))
    assert type(wide) is hard
    assert wide().shape == (4, 2, 3)
    assert wide.log_prob(wide()).shape == wide.batch_shape


def test_draws_have_the_law_of_the_discrete_variable() -> None:
    n = 20_000
    ones = RelaxedBernoulliStraightThrough(TEMPERATURE, probs=torch.tensor([0.2, 0.9])).sample((n,)).sum(0)
    for count, p in zip(ones.tolist(), (0.2, 0.9), strict=True):
        observed = torch.tensor([n - count, count]).double().numpy()
        assert chi_square(observed, torch.tensor([1 - p, p]).double().numpy()) > FAILURE_RATE
    probs = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    counts = RelaxedOneHotCategoricalStraightThrough(TEMPERATURE, probs=probs).sample((n,)).sum(0)
    assert chi_square(counts.double().numpy(), probs.numpy()) > FAILURE_RATE


@pytest.mark.parametrize("name", [hard.__name__ for hard, _ in PAIRS])
def test_streams_and_numbers_of_pyro(name: str) -> None:
    ours: list[Tensor] = []
    for family in (globals()[name], getattr(peer, name)):
        torch.manual_seed(7)
        dist = family(TEMPERATURE, logits=LOGITS)
        draw = dist.rsample((30,))
        ours.append(torch.cat([draw.flatten(), dist.log_prob(draw).flatten()]))
    assert torch.equal(*ours)


def test_parameters_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Either `probs` or `logits` must be specified"):
        RelaxedBernoulliStraightThrough(TEMPERATURE)
    with pytest.raises(ValueError, match=r"parameter probs"):
        RelaxedBernoulliStraightThrough(TEMPERATURE, probs=torch.tensor(1.5))
