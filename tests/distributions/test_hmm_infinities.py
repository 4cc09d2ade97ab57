"""DiscreteHMM: impossible moves, dead ends and ragged batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sumprod.distributions as dist
from sumprod.distributions import DiscreteHMM
from tests.distributions.hmm_problems import build

INF = math.inf


# ---- infinities ----------------------------------------------------------------------------------


def left_right(states: int) -> Tensor:
    keep = torch.ones(states, states).triu().tril(1).bool()
    return torch.randn(states, states, dtype=torch.float64).masked_fill(~keep, -INF)


def test_impossible_moves_have_weight_and_gradient_zero() -> None:
    transition = left_right(3).requires_grad_()
    initial = torch.tensor([0.0, -INF, -INF], dtype=torch.float64, requires_grad=True)
    hmm = DiscreteHMM(initial, transition, dist.Normal(torch.arange(3.0, dtype=torch.float64), 1.0))
    value = torch.randn(6, dtype=torch.float64)
    log_prob = hmm.log_prob(value)
    first = torch.autograd.grad(log_prob, [initial, transition], create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), [initial, transition])
    for grad in (*first, *second):
        assert grad.isfinite().all()
    for grad in (first[1], second[1]):
        assert (grad[transition == -INF] == 0).all()
        assert (grad[transition != -INF] != 0).any()
    assert (first[0][1:] == 0).all()
    path = hmm.viterbi(value).path
    assert (path.diff() >= 0).all()
    assert (hmm.sample_posterior(value, (50,)).diff() >= 0).all()


def test_an_impossible_sequence_is_minus_infinity_with_zero_gradient() -> None:
    initial = torch.zeros(2, requires_grad=True)
    transition = torch.tensor([[0.0, -INF], [-INF, 0.0]], requires_grad=True)
    probs = torch.tensor([[0.0, -INF], [-INF, 0.0]], requires_grad=True)
    hmm = DiscreteHMM(initial, transition, dist.Categorical(logits=probs))
    value = torch.tensor([[0, 0, 1], [1, 1, 1]])
    log_prob = hmm.log_prob(value)
    assert log_prob.tolist() == [-INF, pytest.approx(math.log(0.5))]
    log_prob[0].backward()
    assert initial.grad.tolist() == [0, 0]
    assert (transition.grad == 0).all()
    assert (probs.grad == 0).all()


def test_a_dead_state_is_a_row_of_zeros() -> None:
    transition = torch.tensor([[0.0, 0.0], [-INF, -INF]], requires_grad=True)
    hmm = DiscreteHMM(torch.zeros(2), transition, dist.Normal(torch.zeros(2), 1.0), duration=2)
    log_prob = hmm.log_prob(torch.zeros(2))
    # Start in state 0 (1/2), stay (1/2), move anywhere (1): the other half of the mass dies.
    assert log_prob.item() == pytest.approx(math.log(0.25) - math.log(2 * math.pi), rel=1e-6)
    log_prob.backward()
    assert transition.grad.isfinite().all()
    assert (transition.grad[1] == 0).all()
    assert hmm.sample((10,)).isfinite().all()


@pytest.mark.parametrize("method", ["filter", "marginals", "viterbi", "sample_posterior"])
def test_posteriors_of_an_impossible_sequence_name_it(method: str) -> None:
    eye = torch.tensor([[0.0, -INF], [-INF, 0.0]])
    hmm = DiscreteHMM(torch.zeros(2), eye, dist.Categorical(logits=eye))
    value = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="batch element 1 has no possible path: at time step 2") as error:
        getattr(hmm, method)(value)
    assert (error.value.batch_index, error.value.time) == (1, 2)  # type: ignore[attr-defined]
    lengths = torch.tensor([3, 2, 2])
    getattr(hmm, method)(value, lengths=lengths)  # the impossible steps are padding


# ---- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_constructor", [False, True])
def test_padding_is_not_read(in_constructor: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(4, 5, generator=generator) + 0.1
    lengths = torch.tensor([5, 2, 0, 3])
    padding = torch.arange(5) >= lengths[:, None]
    answers = []
    for filler in (math.nan, -3.0, INF, 0.0):
        concentration = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        data = value.masked_fill(padding, filler).requires_grad_()
        given = {"lengths": lengths} if in_constructor else {}
        hmm = DiscreteHMM(torch.zeros(3), torch.eye(3), dist.Gamma(concentration, 1.0), **given)  # type: ignore[arg-type]
        given = {} if in_constructor else {"lengths": lengths}
        result = hmm.log_prob(data, **given)
        result.sum().backward()
        assert (data.grad[padding] == 0).all()
        assert (data.grad[~padding] != 0).all()
        answers.append((result.detach(), concentration.grad, hmm.marginals(data.detach(), **given).logits))
        assert hmm.viterbi(data.detach(), **given).path[padding].eq(-1).all()
    for answer in answers[1:]:
        for ours, first in zip(answer, answers[0], strict=True):
            assert torch.equal(ours, first)
    alone = DiscreteHMM(torch.zeros(3), torch.eye(3), dist.Gamma(torch.tensor([1.0, 2.0, 3.0]), 1.0))
    for row, length in enumerate(lengths):
        assert torch.equal(answers[0][0][row], alone.log_prob(value[row, :length]))


def test_padding_may_lie_outside_a_support_that_changes_with_time() -> None:
    effort = torch.tensor([3.0, 5.0, 0.0, 0.0])
    counts = torch.tensor([[2.0, 5.0, 0.0, 0.0], [1.0, 9.0, 9.0, 9.0]])
    observation = dist.Binomial(effort[:, None], torch.tensor([0.2, 0.8]))
    hmm = DiscreteHMM(torch.zeros(2), torch.eye(2), observation, lengths=torch.tensor([4, 1]))
    result = hmm.log_prob(counts)
    alone = DiscreteHMM(torch.zeros(2), torch.eye(2), dist.Binomial(3.0, torch.tensor([0.2, 0.8])))
    torch.testing.assert_close(result[1], alone.log_prob(counts[1, :1]))


def test_lengths_give_the_batch_shape_and_broadcast() -> None:
    problem = build(steps=4)
    hmm = problem.dist(lengths=[4, 2, 0])
    assert hmm.batch_shape == (3,)
    assert hmm.expand((2, 3)).log_prob(problem.value).shape == (2, 3)
    assert hmm.log_prob(problem.value)[2] == 0
    shorter = problem.dist().log_prob(problem.value[:2])
    torch.testing.assert_close(hmm.log_prob(problem.value)[1], shorter)
    assert torch.equal(hmm.log_prob(problem.value, lengths=[2, 2, 2]), shorter.expand(3))
    ragged = hmm.expand((2, 3)).log_prob(problem.value)
    assert torch.equal(ragged[0], ragged[1])


@pytest.mark.parametrize("first_emits", [False, True])
def test_an_empty_sequence(first_emits: bool) -> None:
    hmm = DiscreteHMM(
        torch.tensor([0.0, 1.0]),
        torch.eye(2),
        dist.Normal(torch.zeros(2), 1.0),
        first_emits=first_emits,
        duration=0,
    )
    assert hmm.event_shape == (0,)
    value = torch.zeros(3, 0)
    assert hmm.log_prob(value).tolist() == [0, 0, 0]
    torch.testing.assert_close(hmm.filter(value).logits, hmm.initial_logits.expand(3, 2))
    assert hmm.viterbi(value).path.shape == (3, 0)
    assert hmm.sample((4,)).shape == (4, 0)
    assert hmm.marginals(value).batch_shape == (3, 0)
